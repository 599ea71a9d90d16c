"""The lab's guest: a small bootable Linux that answers on the network, reports its clock's gaps and dirties memory."""
