"""A Linux kernel with SocketCAN for tests and experiments, whatever kernel this machine has.

`choice` decides which; `kernel` gets Debian's user-mode Linux, `guest` runs a command in it,
`namespace` runs one on this machine's own kernel.
"""
