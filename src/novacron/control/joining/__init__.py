"""Joining: the cluster's CA, tokens for new nodes, their certificates, and who is let in by one."""
