"""The client library, both transports, against real sockets."""
