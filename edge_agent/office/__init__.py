"""The way to the office: enrolment, MQTT, addresses."""
