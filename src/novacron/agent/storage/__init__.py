"""Where disks lie: storage pools as an agent sees them."""
