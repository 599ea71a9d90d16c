"""Who may ask: tokens and principals (service), and the door every request passes (guard)."""
