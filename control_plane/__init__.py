"""The office: the fleet, its firmware and its jobs; one folder a room."""
