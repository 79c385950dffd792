"""Settings: where they come from, what they refuse and how they say it."""

import pytest

from syncline_server.settings import Settings, SettingsError, is_local, load_settings, split_address


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch):
    import os

    for name in list(os.environ):
        if name.startswith("SYNCLINE_"):
            monkeypatch.delenv(name)


def test_every_setting_says_what_it_means():
    for name, field in Settings.model_fields.items():
        assert field.description and field.description.endswith("."), name


def test_command_line_before_environment_before_file_before_default(tmp_path, monkeypatch):
    file = tmp_path / "server.toml"
    file.write_text('depth = 10\nsessions = 11\nlisten = ["127.0.0.1:1"]\n')
    monkeypatch.setenv("SYNCLINE_DEPTH", "20")
    monkeypatch.setenv("SYNCLINE_HTTP", "127.0.0.1:5")
    settings = load_settings(file, http="127.0.0.1:6", listen=None)
    assert settings.depth == 20
    assert settings.sessions == 11
    assert settings.listen == ("127.0.0.1:1",)
    assert settings.http == "127.0.0.1:6"
    assert settings.page_changes == 1_000


def test_the_next_reader_knows_nothing_of_an_earlier_file(tmp_path):
    file = tmp_path / "server.toml"
    file.write_text("depth = 10\n")
    load_settings(file)
    assert load_settings().depth == 64


def test_no_env_file_is_picked_up(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("SYNCLINE_DEPTH=3\n")
    monkeypatch.chdir(tmp_path)
    assert load_settings().depth == 64


def test_addresses_in_the_environment_are_separated_by_commas(monkeypatch):
    monkeypatch.setenv("SYNCLINE_LISTEN", "127.0.0.1:1, unix:/run/s.sock")
    assert load_settings().listen == ("127.0.0.1:1", "unix:/run/s.sock")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"depth": "0"}, ["`depth`", "SYNCLINE_DEPTH", "greater than or equal to 1"]),
        ({"depth": "many"}, ["`depth`", "integer"]),
        ({"listen": "7420"}, ["`listen`", "HOST:PORT"]),
        ({"listen": "::1:7420"}, ["`listen`", "[::1]:7420"]),
        ({"listen": "127.0.0.1:99999"}, ["`listen`"]),
        ({"http": "x"}, ["`http`", "HOST:PORT"]),
        ({"listen": "0.0.0.0:7420"}, ["`listen`", "plain text", "--insecure", "tls_cert"]),
        ({"listen": "127.0.0.1:1,example.org:7420"}, ["example.org", "--insecure"]),
        ({"tls_cert": "a.pem"}, ["tls_key"]),
        ({"tls_client_ca": "a.pem"}, ["tls_cert"]),
        ({"bytes_per_record": 8 << 20}, ["bytes_per_call"]),
        ({"client_ping_seconds": 61}, ["keepalive_seconds"]),
        ({"mass_delete_ratio": 1.5}, ["`mass_delete_ratio`"]),
        ({"log_level": "loud"}, ["`log_level`", "'debug'"]),
    ],
)
def test_a_wrong_setting_is_named(given, words):
    with pytest.raises(SettingsError) as raised:
        load_settings(**given)
    for word in words:
        assert word in str(raised.value)


def test_an_unknown_name_in_the_file_is_refused(tmp_path):
    file = tmp_path / "server.toml"
    file.write_text("dept = 3\n")
    with pytest.raises(SettingsError, match="`dept` is not a setting"):
        load_settings(file)


def test_a_file_that_is_missing_or_no_toml_is_told(tmp_path):
    with pytest.raises(SettingsError, match="no file"):
        load_settings(tmp_path / "nowhere.toml")
    (tmp_path / "bad.toml").write_text("depth =\n")
    with pytest.raises(SettingsError, match=r"bad\.toml"):
        load_settings(tmp_path / "bad.toml")


def test_plain_text_is_for_this_machine_unless_insecure():
    for address in ("127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "unix:/x"):
        assert is_local(address)
        load_settings(listen=address)
    assert not is_local("[::]:1")
    assert load_settings(listen="0.0.0.0:1", insecure=True).insecure
    assert load_settings(listen="0.0.0.0:1", tls_cert="c", tls_key="k").tls_cert


def test_addresses():
    assert split_address("[::1]:80") == ("::1", 80)
    assert split_address("example.org:0") == ("example.org", 0)
