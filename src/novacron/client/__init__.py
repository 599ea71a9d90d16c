"""The client library: calls as data (vms, nodes, images, migrations), done by `Client` or `AsyncClient`.

    from novacron.client import vms
    from novacron.client.sync import Client
    from novacron.client.asynchronous import AsyncClient

The two clients stand in files of their own, so that a program loads only what it runs on.
"""
