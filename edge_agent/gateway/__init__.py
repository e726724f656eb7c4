"""The gateway's own life: systemd, logs, versions of the agent itself."""
