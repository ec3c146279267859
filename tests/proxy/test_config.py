"""The configuration: where values come from, and one line for each way to get it wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from proxy import config as config_module
from proxy import config_effects
from proxy.config import Backend, Config, ConfigError, json_schema, load, parse_address

BACKEND = '[[backends]]\nname = "primary"\nurl = "http://127.0.0.1:8000"\n'


def write(directory: Path, text: str) -> str:
    path = directory / "specbreaker.toml"
    path.write_text(text)
    return str(path)


def loaded(path: str | None = None, environment: dict[str, str] | None = None, **flags: Any) -> Config:
    values = {name.replace("__", "."): value for name, value in flags.items()}
    return load(path, environment=environment or {}, flags=values)


# ---- bad input -------------------------------------------------------------------------------------------------------

BAD = {
    "unknown table": ("[sever]\n", "sever: no such key (see `specbreaker config show`)"),
    "agent that is no address": (
        BACKEND + '[server]\nagent = "8902"\n',
        'server.agent: not HOST:PORT: "8902"',
    ),
    "unknown key": ("[server]\nlisten_on = 1\n", "server.listen_on: no such key (see `specbreaker config show`)"),
    "unknown key of a backend": (
        BACKEND + 'uri = "x"\n',
        "backends[0].uri: no such key (see `specbreaker config show`)",
    ),
    "unknown key of the second backend": (
        BACKEND + '[[backends]]\nname = "b"\nurl = "http://b"\nkey = 1\n',
        "backends[1].key: no such key (see `specbreaker config show`)",
    ),
    "wrong type": ("[server]\nlisten = 8900\n", "server.listen: Expected `str`, got `int`"),
    "number out of range": (
        "[measure]\nscrape_seconds = 0\n",
        "measure.scrape_seconds: Expected `float` > 0.0",
    ),
    "too small": ("[policy]\ncanary_max_tokens = 1\n", "policy.canary_max_tokens: Expected `int` >= 16"),
    "not one of the choices": ("[policy]\nmode = 'acting'\n", "policy.mode: Invalid enum value 'acting'"),
    "missing url": ('[[backends]]\nname = "primary"\n', "backends[0]: Object missing required field `url`"),
    "not a URL": (
        '[[backends]]\nname = "a"\nurl = "localhost:8000"\n',
        'backends[0].url: not a URL: "localhost:8000" (write http://HOST:PORT)',
    ),
    "no scheme that is spoken": (
        '[[backends]]\nname = "a"\nurl = "ftp://h"\n',
        'backends[0].url: not a URL: "ftp://h" (write http://HOST:PORT)',
    ),
    "port out of range": (
        '[[backends]]\nname = "a"\nurl = "http://h:99999"\n',
        'backends[0].url: not a URL: "http://h:99999" (write http://HOST:PORT)',
    ),
    "no host": (
        '[[backends]]\nname = "a"\nurl = "http://"\n',
        'backends[0].url: not a URL: "http://" (write http://HOST:PORT)',
    ),
    "URL with a path": (
        '[[backends]]\nname = "a"\nurl = "http://h:1/v1"\n',
        'backends[0].url: only scheme, host and port: "http://h:1/v1" (clients add the path)',
    ),
    "URL with a user": (
        '[[backends]]\nname = "a"\nurl = "http://u:p@h:1"\n',
        'backends[0].url: only scheme, host and port: "http://u:p@h:1" (clients add the path)',
    ),
    "bad name": (
        '[[backends]]\nname = "a b"\nurl = "http://h"\n',
        'backends[0].name: "a b": use letters, digits, ".", "_" and "-"',
    ),
    "name used twice": (
        BACKEND + '[[backends]]\nname = "primary"\nurl = "http://b"\nrole = "fallback"\n',
        'backends[1].name: "primary" is used twice',
    ),
    "no primary": (
        '[[backends]]\nname = "a"\nurl = "http://h"\nrole = "fallback"\n',
        'backends: exactly one must have role = "primary"',
    ),
    "two primaries": (
        BACKEND + '[[backends]]\nname = "b"\nurl = "http://b"\n',
        'backends: exactly one must have role = "primary"',
    ),
    "key variable not set": (
        BACKEND + 'api_key_env = "SPECBREAKER_TEST_UNSET"\n',
        "backends[0].api_key_env: the variable SPECBREAKER_TEST_UNSET is not set",
    ),
    "bad address": ('[server]\nlisten = "8900"\n', 'server.listen: not HOST:PORT: "8900"'),
    "bad admin port": ('[server]\nadmin = "h:70000"\n', 'server.admin: not HOST:PORT: "h:70000"'),
    "half of TLS": (
        '[server]\ntls_key_file = "k"\n',
        "server: tls_certificate_file and tls_key_file go together",
    ),
}


@pytest.mark.parametrize(("text", "line"), BAD.values(), ids=BAD.keys())
def test_bad_files_give_one_line_that_names_the_place(tmp_path: Path, text: str, line: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        loaded(path)
    assert str(error.value) == f"{path}: {line}"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    path = str(tmp_path / "none.toml")
    with pytest.raises(ConfigError) as error:
        loaded(path)
    assert str(error.value) == f"{path}: cannot be read: No such file or directory"


@pytest.mark.parametrize("raw", [b"[server", b"\xff\xfe", b"a = \n"])
def test_a_file_that_is_not_toml(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(raw)
    with pytest.raises(ConfigError) as error:
        loaded(str(path))
    assert str(error.value).startswith(f"{path}: not TOML: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"SPECBREAKER_POLICY__MOOD": "act"}, "flags and environment: policy.mood: no such key"),
        ({"SPECBREAKER_POLICY__MODE": "x"}, "flags and environment: policy.mode: Invalid enum value 'x'"),
        ({"SPECBREAKER_MEASURE__SCRAPE_SECONDS": "soon"}, "flags and environment: measure.scrape_seconds: "),
        ({"SPECBREAKER_NOTHING__X": "1"}, "flags and environment: nothing: no such key"),
    ],
)
def test_bad_variables_give_one_line(environment: dict[str, str], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        loaded(environment=environment)
    assert str(error.value).startswith(line)


def test_a_variable_cannot_reach_into_a_list_of_tables(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        loaded(write(tmp_path, BACKEND), {"SPECBREAKER_BACKENDS__URL": "http://x"})
    assert str(error.value) == "SPECBREAKER_BACKENDS__URL: backends is not a table of single values"


# ---- where values come from ------------------------------------------------------------------------------------------


def test_defaults_need_no_file() -> None:
    config = loaded()
    assert config.server.listen == "127.0.0.1:8900"
    assert config.server.admin.startswith("127.0.0.1:")
    assert config.policy.mode == "observe"
    assert config.record.directory is None
    assert config.backends == ()


def test_a_flag_beats_a_variable_which_beats_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, '[policy]\nmode = "observe"\n[server]\nlisten = "h:1"\n[log]\nlevel = "debug"\n' + BACKEND)
    environment = {"SPECBREAKER_POLICY__MODE": "advise", "SPECBREAKER_SERVER__LISTEN": "h:2"}
    assert loaded(path).policy.mode == "observe"
    assert loaded(path, environment).policy.mode == "advise"
    config = loaded(path, environment, policy__mode="act", server__listen=None)
    assert (config.policy.mode, config.server.listen, config.log.level) == ("act", "h:2", "debug")


def test_variables_are_converted_to_the_type_of_their_key() -> None:
    config = loaded(
        environment={
            "SPECBREAKER_MEASURE__ASK_USAGE": "false",
            "SPECBREAKER_MEASURE__SCRAPE_SECONDS": "2.5",
            "SPECBREAKER_SERVER__MAX_HEAD_BYTES": "2048",
            "SPECBREAKER_ENGINE_URL": "another program's",
            "UNRELATED__VARIABLE": "x",
        }
    )
    assert config.measure.ask_usage is False
    assert config.measure.scrape_seconds == 2.5
    assert config.server.max_head_bytes == 2048


def test_backends_given_as_flags_replace_those_of_the_file(tmp_path: Path) -> None:
    config = loaded(write(tmp_path, BACKEND), backends=[{"name": "other", "url": "http://o:1"}])
    assert [backend.name for backend in config.backends] == ["other"]


def test_a_whole_file(tmp_path: Path) -> None:
    config = loaded(
        write(
            tmp_path,
            '[server]\nallow_control_routes = ["/sleep"]\n'
            + BACKEND
            + '[[backends]]\nname = "off"\nurl = "https://[::1]:8443/"\nrole = "fallback"\nmetrics = false\n',
        )
    )
    assert config.server.allow_control_routes == ("/sleep",)
    assert config.backends[1] == Backend(name="off", url="https://[::1]:8443/", role="fallback", metrics=False)


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:8900", ("127.0.0.1", 8900)), ("[::1]:0", ("::1", 0)), ("host.example:65535", ("host.example", 65535))],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "h", ":1", "h:", "h:x", "h:-1", "h:65536", "h:1.5"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match="not HOST:PORT"):
        parse_address(text)


# ---- what describes it -----------------------------------------------------------------------------------------------


def test_the_schema_names_every_key_and_accepts_no_other() -> None:
    schema = json_schema()
    definitions = schema["$defs"]
    tables = [field.type for field in msgspec.structs.fields(Config) if field.name not in ("backends", "ladder")]
    for section in (Config, *tables):
        described = definitions[section.__name__]
        names = {field.name for field in msgspec.structs.fields(section)}
        assert set(described["properties"]) == names
        assert described["additionalProperties"] is False
    assert set(definitions["Backend"]["required"]) == {"name", "url"}


def test_every_key_is_documented_with_a_text() -> None:
    source = Path(config_module.__file__).read_text() + Path(config_effects.__file__).read_text()
    names = re.findall(r"^class (\w+)\(Section, frozen=True\)", source, re.MULTILINE)
    assert {"Server", "Effects"} < set(names)
    # The tables of [effects] are described by their own docstrings.
    for section in set(names) - {"Config", "Effects"}:
        body = source.split(f"class {section}(Section")[1].split("\n\n\n")[0].splitlines()
        for number, line in enumerate(body):
            if line.startswith("    ") and ": " in line and not line.lstrip().startswith(('"', "#")) and line[4] != " ":
                assert body[number + 1].lstrip().startswith('"""'), f"{section}: {line.strip()}"
