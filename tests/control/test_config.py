"""Settings: where they come from, and how a wrong one is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from novacron.config import AgentConfig, ServerConfig, is_loopback, load
from novacron.errors import InvalidInput
from novacron.model.placement import PlacementPolicy, Weights

SERVER: dict[str, Any] = {"data_dir": "/d", "pool_dir": "/p"}
AGENT: dict[str, Any] = {
    "server": "unix:/s",
    "secret_file": "/f",
    "node_name": "node-1",
    "state_dir": "/s",
    "run_dir": "/r",
    "pool_dir": "/p",
}


def test_flags_count_more_than_the_file(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('data_dir = "/d"\npool_dir = "/p"\nport = 1000\nlog_format = "json"\n')
    config = load(ServerConfig, file, {"port": "2000", "log_format": None})
    assert (config.port, config.log_format, config.data_dir) == (2000, "json", Path("/d"))


def test_loopback_is_the_default_and_needs_no_tls() -> None:
    assert load(ServerConfig, None, SERVER).host == "127.0.0.1"
    for host in ("127.0.0.9", "::1", "localhost"):
        assert is_loopback(host)
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org", "127.0.0.1.example.org"):
        assert not is_loopback(host)


def test_a_clusters_ca_is_tls_enough_off_loopback() -> None:
    config = load(ServerConfig, None, SERVER | {"host": "192.0.2.1", "cluster_dir": "/c"})
    assert (config.has_tls, config.cluster_dir) == (True, Path("/c"))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"host": "0.0.0.0"}, "host"),
        ({"tls_cert": "/c"}, "tls_cert"),
        ({"tls_cert": "/c", "tls_key": "/k", "cluster_dir": "/c"}, "tls_cert"),
        ({"node_certificate_lasts_s": "9"}, "node_certificate_lasts_s"),
        ({"port": "70000"}, "port"),
        ({"cpu_overcommit": "0.5"}, "cpu_overcommit"),
        ({"log_format": "xml"}, "log_format"),
        ({"disk_overcommit": "0"}, "disk_overcommit"),
        ({"placement_weights": "memory=-1"}, "placement_weights.memory"),
        ({"placement_weights": "luck=1"}, "config"),
        ({"placement_policy": "random"}, "config"),
        ({"ha_admission": "hope"}, "config"),
        ({"prot": "1"}, "prot"),
        ({"advertise": "https://s1:8470"}, "advertise"),
        ({"advertise": "http://s1:8470", "cluster_dir": "/c"}, "advertise"),
        ({"advertise": "https://s1", "cluster_dir": "/c"}, "advertise"),
        ({"mdns": "true"}, "mdns"),
        ({"mdns": "true", "cluster_dir": "/c"}, "mdns"),
        ({"port": "many"}, "config"),
    ],
)
def test_a_wrong_server_setting_is_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        load(ServerConfig, None, SERVER | change)
    assert refused.value.reasons[0].subject == field


def test_weights_come_from_a_table_or_a_flag(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('data_dir = "/d"\npool_dir = "/p"\nplacement_policy = "pack"\n[placement_weights]\nrules = 4\n')
    config = load(ServerConfig, file, {})
    assert (config.placement_policy, config.placement_weights) == (PlacementPolicy.PACK, Weights(rules=4.0))
    flags = load(ServerConfig, file, {"placement_weights": "memory=0.5,vcpus=2"})
    assert flags.placement_weights == Weights(memory=0.5, vcpus=2.0)


def test_off_loopback_with_tls_is_fine() -> None:
    config = load(ServerConfig, None, SERVER | {"host": "0.0.0.0", "tls_cert": "/c", "tls_key": "/k"})
    assert config.tls_key == Path("/k")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"node_name": "a,process=x"}, "node_name"),
        ({"node_name": "-a"}, "node_name"),
        ({"server": "http://192.0.2.1:8470"}, "server"),
        ({"server": "ftp://x"}, "server"),
        ({"server": "srv:"}, "server"),
        ({"server": "srv:a b.example.org"}, "server"),
        ({"server": "mdns:eth0"}, "server"),
        ({"migration_host": "node-1"}, "migration_host"),
        ({"tunnel_host": "node-1"}, "tunnel_host"),
        ({"accelerator": "hax"}, "accelerator"),
        ({"watchdog": "watchdog0"}, "watchdog"),
    ],
)
def test_a_wrong_agent_setting_is_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        load(AgentConfig, None, AGENT | change)
    assert refused.value.reasons[0].subject == field


def test_an_agent_has_one_server_or_several() -> None:
    assert load(AgentConfig, None, AGENT).addresses == ("unix:/s",)
    several = AGENT | {"server": None, "servers": "https://a:1,https://b:2"}
    assert load(AgentConfig, None, several).addresses == ("https://a:1", "https://b:2")


def test_servers_may_be_named_or_looked_for() -> None:
    mixed = AGENT | {"server": None, "servers": "https://a:1,srv:_novacron._tcp.example.org,mdns:,mdns:192.0.2.7"}
    config = load(AgentConfig, None, mixed)
    assert config.addresses == ("https://a:1",)
    assert config.sources == ("srv:_novacron._tcp.example.org", "mdns:", "mdns:192.0.2.7")


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({}, ""),
        ({"cluster_dir": "/c"}, ""),  # on loopback
        ({"cluster_dir": "/c", "host": "0.0.0.0"}, ""),
        ({"cluster_dir": "/c", "host": "192.0.2.1"}, "https://heard:1"),
        ({"cluster_dir": "/c", "host": "0.0.0.0", "advertise": "https://s1:8470", "mdns": "true"}, "https://s1:8470"),
    ],
)
def test_nodes_are_told_a_place_that_they_can_dial(change: dict[str, Any], place: str) -> None:
    assert load(ServerConfig, None, SERVER | change).place("https://heard:1") == place


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"server": None}, "server"),
        ({"servers": ["https://a:1"]}, "server"),
        ({"server": None, "servers": ["https://a:1", "http://b.example:2"]}, "servers"),
        ({"server": None, "servers": ["https://a:1", "https://a:1"]}, "servers"),
    ],
)
def test_wrong_servers_of_an_agent_are_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        load(AgentConfig, None, AGENT | change)
    assert refused.value.reasons[0].subject == field


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(InvalidInput, match="pool_dir"):
        load(ServerConfig, None, {"data_dir": "/d"})


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "x.toml"
    broken.write_text("port = ")
    for file in (broken, tmp_path / "absent.toml"):
        with pytest.raises(InvalidInput, match=file.name):
            load(ServerConfig, file, SERVER)
