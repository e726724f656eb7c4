"""The event bus: each consumer group on its own, failures durable."""
