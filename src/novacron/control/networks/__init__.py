"""Networks and security groups: routes ask, services check and record, the weaver tells every node what it needs."""
