"""A config that is wrong is refused before anything starts, and the answer names the key."""

from __future__ import annotations

import subprocess

import pytest

from harness import DEV_FLAGS, Cluster, Dev, Timeout, binary

pytestmark = pytest.mark.short

USAGE = 64
API = '[[api]]\nname = "a"\npath = "/a"\nregistration = "accept"\n'

WRONG = {
    "unknown-key": (API + 'pathh = "/b"\n', "pathh"),
    "unknown-table": ("[brokerr]\n" + API, "brokerr"),
    "wrong-type": (API + 'ping_interval = 25\n', "ping_interval"),
    "bad-duration": (API + 'ping_interval = "25 parsecs"\n', "ping_interval"),
    "too-large": (API + 'max_message = "1GiB"\n', "max_message"),
    "relation": (API + 'max_message = "1MiB"\nmax_queue = "1KiB"\n', "max_queue"),
    "same-name-twice": (API + API, '"a"'),
    "no-path": ('[[api]]\nname = "a"\n', "path"),
    "bad-name": (API.replace('"a"', '"a b"', 1), "name"),
    "not-toml": ("[[api]\n", "line"),
}


@pytest.mark.parametrize(("text", "named"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_config_ends_with_64_and_names_the_key(folder, text, named):
    path = folder / "wrong.toml"
    path.write_text(text)
    for extra in ([], ["--check-config"]):
        data = folder / "data"
        argv = [binary(), "dev", "--config", path, "--data", data, *DEV_FLAGS, *extra]
        done = subprocess.run([str(part) for part in argv], capture_output=True, timeout=20)
        said = done.stderr.decode()
        assert done.returncode == USAGE, f"{done.returncode}: {said}"
        assert named in said, said
        assert not data.exists(), "it made a data folder nevertheless"


def test_a_good_config_passes_the_check_and_starts_nothing(folder):
    path = folder / "good.toml"
    path.write_text(API)
    argv = [binary(), "dev", "--config", path, "--data", folder / "data", "--check-config"]
    done = subprocess.run([str(part) for part in argv], capture_output=True, timeout=20)
    assert done.returncode == 0, done.stderr.decode()
    assert not (folder / "data").exists()


def test_the_check_reads_the_files_that_are_named(folder):
    path = folder / "files.toml"
    for auth, named in [
        ('{ kind = "jwt", algorithms = ["RS256"], jwks_file = "no-keys.json" }', "no-keys.json"),
        ('{ kind = "jwt", algorithms = ["HS256"], keys = [{ algorithm = "HS256", secret = "hush" }] }', "fewer than 32 bytes"),
    ]:
        path.write_text(API + f"auth = {auth}\n")
        argv = [binary(), "dev", "--config", path, "--data", folder / "data", "--check-config"]
        done = subprocess.run([str(part) for part in argv], capture_output=True, timeout=20)
        said = done.stderr.decode()
        assert done.returncode == USAGE and named in said and "hush" not in said, said
    for key in ["tokens_file", "push.secrets_file", "aws.keys_file"]:
        argv = [str(binary()), "broker", "--check-config", "--set", f"broker.{key}=/nonexistent"]
        done = subprocess.run(argv, capture_output=True, timeout=20)
        assert done.returncode == USAGE and "/nonexistent" in done.stderr.decode(), done.stderr.decode()


def test_a_config_that_is_not_there_is_64(folder):
    done = subprocess.run([str(binary()), "dev", "--config", str(folder / "none.toml")], capture_output=True, timeout=20)
    assert done.returncode == USAGE and "none.toml" in done.stderr.decode()


def test_an_unknown_flag_and_an_unknown_verb_are_64():
    for words in (["dev", "--no-such-flag"], ["no-such-verb"], ["state", "--at", "not-an-offset"]):
        done = subprocess.run([str(binary()), *words], capture_output=True, timeout=20)
        assert done.returncode == USAGE and done.stderr, f"{words}: {done.returncode} {done.stderr.decode()}"


def test_a_port_that_is_taken_is_said_and_ends_the_process(folder, dev):
    taken = dev.edge.addresses["ws"]
    node = Dev(folder, flags=["--ws", taken])
    node.process.argv.remove("127.0.0.1:0")  # the first --ws flag's value, and then the flag
    node.process.argv.remove("--ws")
    with pytest.raises(Timeout):
        node.start()
    assert node.process.popen.wait(10) not in {0, USAGE}
    assert taken in node.process.log_text() or taken.rpartition(":")[2] in node.process.log_text()


def test_dev_serves_the_apis_of_a_config_beside_its_own(folder):
    node = Dev(folder, config=API).start()
    import wire

    for path in ["/a", "/echo", "/news"]:
        with wire.Socket(node.edge.address("ws"), path) as socket:
            socket.close()


def test_beyond_loopback_without_tls_is_refused(folder):
    cluster = Cluster(folder, API)
    cluster.start_broker()
    cluster.broker.stop()
    path = folder / "broker.toml"
    path.write_text(path.read_text().replace(f'grpc = "{cluster.broker.addresses["grpc"]}"', 'grpc = "0.0.0.0:0"').replace('grpc = "127.0.0.1:0"', 'grpc = "0.0.0.0:0"'))
    done = subprocess.run([str(binary()), "broker", "--config", str(path)], capture_output=True, timeout=20)
    assert done.returncode == USAGE and b"insecure" in done.stderr, done.stderr.decode()
