"""How a server is found on a local network: the words of its mDNS service.

They say where a server is, not who it is: a node goes by the server's certificate, and passes over those whose `ca` is
none of its own only so as not to dial other clusters' servers in vain.
"""

from __future__ import annotations

MDNS_TYPE = "_novacron._tcp.local."
PLACE, CA = "place", "ca"
"""Of its TXT record: `https://host:port`, and the SHA-256 of the certificate of the CA that signs, in hex."""

MAX_PLACES = 32
"""So many servers a node takes from one word about where they are."""
