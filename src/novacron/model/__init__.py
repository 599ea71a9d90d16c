"""Facts, pure: what a VM, a node, an image and a migration are, and which changes they allow. No I/O."""
