"""May an ECU be flashed now: vehicle, people, calendar."""
