"""The hands: flashing protocols over CAN. Knows chips and buses, nothing of jobs or networks."""
