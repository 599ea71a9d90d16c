"""What the system remembers: revisioned records with compare-and-swap, prefix lists and watches."""
