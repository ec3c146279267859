import json
import signal
import subprocess
import sys
import urllib.request

from click.testing import CliRunner

from replay.emulator.cli import emulate_command


def test_the_command_serves_until_it_is_told_to_stop():
    arguments = ["--listen", "127.0.0.1:0", "--scenario", "fallback", "--model", "mine", "--time-scale", "0"]
    program = "from replay.emulator.cli import emulate_command; emulate_command()"
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        base_url = line.split(" on ")[1].strip()
        with urllib.request.urlopen(base_url + "/v1/models") as response:
            assert json.load(response)["data"][0]["id"] == "mine"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_bad_input_is_one_clear_line_and_exit_2(tmp_path):
    for arguments, told in (
        (["--scenario", "nowhere"], "published-tokens"),
        (["--listen", "nonsense"], "HOST:PORT"),
        (["--version", "1.0"], "0.20.2"),
        (["--time-scale", "-1"], "x>=0"),
        (["--listen", "203.0.113.1:1"], "cannot listen on 203.0.113.1:1"),
    ):
        result = CliRunner().invoke(emulate_command, arguments)
        assert result.exit_code == 2, result.output
        assert told in result.output
        assert "Traceback" not in result.output
