"""The language that truck and centre both speak: messages, topics, states, trust. Pure, no I/O."""
