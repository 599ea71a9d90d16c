"""The stream proxy: makes a migration stream small on its way over a slow link, and gives the target the same bytes."""
