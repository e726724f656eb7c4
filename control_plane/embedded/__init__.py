"""The servers that a single process brings along: PostgreSQL and an MQTT broker, from wheels."""
