"""The office's only speaker of MQTT."""
