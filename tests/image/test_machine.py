"""What docs/behaviour.md promises of a machine, tried inside the image."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from catty.engines.ca import host_ca_bundle
from image.container import BUNDLE, Container, container

pytestmark = [pytest.mark.engine, pytest.mark.image]

PORT = 8443


class Authority:
    """A CA that nobody else knows, as a corporate proxy has one; `bundle` holds it beside the host's, `server` is a localhost's
    certificate by it, with its key."""

    def __init__(self, directory: Path) -> None:
        key, name = ec.generate_private_key(ec.SECP256R1()), _name("Catty test CA")
        ca = _certificate(name, name, key, key, x509.BasicConstraints(ca=True, path_length=None), _SIGNS)
        leaf_key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
        leaf = _certificate(_name("localhost"), name, leaf_key, key, names)
        pem = serialization.Encoding.PEM
        host = host_ca_bundle()
        self.bundle = directory / "bundle.pem"
        self.bundle.write_bytes((host.read_bytes() if host else b"") + ca.public_bytes(pem))
        private = leaf_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        self.server = (private + leaf.public_bytes(pem)).decode()


_SIGNS = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    by: ec.EllipticCurvePrivateKey,
    *extensions: x509.ExtensionType,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    issuers = x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key())
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(
        now + datetime.timedelta(days=2)
    )
    for each in (*extensions, own, issuers):
        builder = builder.add_extension(each, critical=isinstance(each, x509.BasicConstraints | x509.KeyUsage))
    return builder.sign(by, hashes.SHA256())


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def machine(session_image: str, authority: Authority) -> Iterator[Container]:
    with container(session_image, authority.bundle) as running:
        yield running


@pytest.mark.parametrize(
    ("command", "shows"),
    [
        ("node --version", "v22."),
        ("npm --version", ""),
        ("npx --version", ""),
        ("git --version", "git version 2."),
        ("gh --version", "gh version 2."),
        ("python3 --version", "Python 3.13"),
        ("pip --version", "python 3.13"),
        ("python3 -m venv --help", "usage"),
        ("rg --version", "ripgrep"),
        ("jq --version", "jq"),
        ("vim --version", "VIM"),
        ("curl --version", "curl"),
        ("wget --version", "Wget"),
        ("tree --version", "tree"),
        ("ps --version", "procps"),
        ("less --version", "less"),
        ("zip -v", "Info-ZIP"),
        ("unzip -v", "UnZip"),
        ("ssh -V 2>&1", "OpenSSH"),
        ("sudo --version", "Sudo"),
        ("gcc --version", "gcc"),
        ("g++ --version", "g++"),
        ("make --version", "GNU Make"),
        ("claude --version", "2.1.330"),
        ("codex --version", "0.169.0"),
        ("sudo claude --version", "2.1.330"),
    ],
)
def test_tools(machine: Container, command: str, shows: str) -> None:
    assert shows in machine.run(command)


def test_the_agent_is_an_ordinary_user_who_may_become_root(machine: Container) -> None:
    assert machine.run("id -un; id -u; pwd; echo $HOME; stat -c %U /workspace /home/agent").split() == [
        *("agent", "1000", "/workspace", "/home/agent"),
        *("agent", "agent"),
    ]
    assert machine.run("sudo -n id -u").strip() == "0"


def test_the_locale_is_utf8(machine: Container) -> None:
    assert machine.run("locale charmap; python3 -c 'import sys; print(sys.getfilesystemencoding())'").split() == [
        "UTF-8",
        "utf-8",
    ]
    assert machine.run("echo $TERM").strip() == "xterm-256color"


def test_a_c_program_and_a_python_extension_can_be_built(machine: Container) -> None:
    machine.run(
        "echo '#include <Python.h>\nint main(void) { return 0; }' | gcc -x c - -I/usr/include/python3.13 -o /tmp/a && /tmp/a"
    )
    machine.run(
        "echo '#include <vector>\nint main() { return std::vector<int>().size(); }' | g++ -x c++ - -o /tmp/b && /tmp/b"
    )


def test_apt_get_installs(machine: Container) -> None:
    machine.run("sudo apt-get update && sudo apt-get install -y hello")
    assert machine.run("hello").strip() == "Hello, world!"


def test_apt_knows_security_updates_where_the_mirror_has_them(machine: Container) -> None:
    assert "trixie" in machine.run("apt-get indextargets --format '$(RELEASE)'")


def test_pip_installs_outside_and_inside_a_venv(machine: Container) -> None:
    machine.run("pip install -q six && python3 -c 'import six'")
    machine.run("sudo pip install -q iniconfig && python3 -c 'import iniconfig'")
    machine.run(
        "python3 -m venv /tmp/venv && /tmp/venv/bin/pip install -q idna && /tmp/venv/bin/python -c 'import idna'"
    )


def test_npm_installs_globally(machine: Container) -> None:
    machine.run("npm install -g --silent semver@7")
    assert machine.run("semver 1.2.3").strip() == "1.2.3"
    machine.run("sudo npm install -g --silent nopt@8")


HTTPS_SERVER = f"""
import http.server, ssl
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/tmp/server.pem")
server = http.server.ThreadingHTTPServer(("127.0.0.1", {PORT}), http.server.SimpleHTTPRequestHandler)
server.socket = context.wrap_socket(server.socket, server_side=True)
print("ready", flush=True)
server.serve_forever()
"""


def serve(machine: Container, authority: Authority) -> None:
    """A repository behind a certificate of the authority's, on localhost in the machine."""
    machine.run(
        f"cat >/tmp/server.pem <<'END'\n{authority.server}\nEND\ncat >/tmp/server.py <<'END'\n{HTTPS_SERVER}\nEND"
    )
    machine.run(
        "git init -q /tmp/web/repo && cd /tmp/web/repo && echo content >file && git add file"
        " && git -c user.name=a -c user.email=a@b commit -qm first && git update-server-info"
    )
    machine.run(
        "cd /tmp/web && mkfifo /tmp/ready && { setsid python3 /tmp/server.py >/tmp/ready 2>/dev/null </dev/null & } && head -n 1 /tmp/ready"
    )


def test_https_trusts_the_hosts_certificates(machine: Container, authority: Authority) -> None:
    serve(machine, authority)
    url = f"https://localhost:{PORT}"
    assert "refs/heads" in machine.run(f"git ls-remote {url}/repo/.git")
    assert machine.run(f"git clone -q {url}/repo/.git /tmp/clone && cat /tmp/clone/file").strip() == "content"
    for fetch in (
        f"curl -sSf {url}/repo/file",
        f"wget -qO- {url}/repo/file",
        f"sudo curl -sSf {url}/repo/file",
        f"node -e 'fetch(\"{url}/repo/file\").then(r => r.text()).then(console.log)'",
        f"sudo node -e 'fetch(\"{url}/repo/file\").then(r => r.text()).then(console.log)'",
        f"python3 -c 'import urllib.request as u; print(u.urlopen(\"{url}/repo/file\").read().decode())'",
    ):
        assert machine.run(fetch).strip() == "content", fetch


def test_https_trusts_no_others(session_image: str, authority: Authority) -> None:
    with container(session_image, None) as plain:
        serve(plain, authority)
        assert "certificate" in plain.run(f"git ls-remote https://localhost:{PORT}/repo/.git", check=False)


def test_no_certificate_of_the_build_stays(session_image: str) -> None:
    with container(session_image, None) as plain:
        assert plain.run(f"test -s {BUNDLE} && ls /run", user="root").find("catty-ca") == -1
        # Debian's own bundle, made by its own package
        assert plain.run(f"update-ca-certificates >/dev/null; cksum {BUNDLE}", user="root") == plain.run(
            f"cksum {BUNDLE}"
        )


# ---------------------------------------------------------------------------------------------- the runtime's interpreter

USES_EVERYTHING = """
import asyncio, bz2, ctypes, hashlib, json, lzma, pwd, select, signal, socket, sqlite3, ssl, struct, subprocess, sys, threading, zlib
import blake3, inotify_simple, multidict, picows, zstandard
import catty.wire.claim, catty.workspace.model
watch = inotify_simple.INotify()
watch.add_watch("/tmp", inotify_simple.flags.MODIFY)
open("/tmp/watched", "a").write("x")
assert watch.read(timeout=5000)
assert zstandard.decompress(zstandard.compress(b"x")) == b"x" and len(blake3.blake3(b"x").digest()) == 32
assert pwd.getpwnam("agent").pw_uid == 1000
thread = threading.Thread(target=asyncio.run, args=(asyncio.sleep(0),))
thread.start(), thread.join()
subprocess.run([sys.executable, "-IS", "-c", "import catty"], check=True)
maps = {line.split()[-1] for line in open("/proc/self/maps") if ".so" in line}
assert maps and all(name.startswith("/opt/catty/") for name in maps), maps
assert not [name for name, module in sys.modules.items() if name != "__main__" and not getattr(module, "__file__", "/opt/catty/").startswith("/opt/catty/")]
print("survived")
"""

DESTROY = """
import glob, os, shutil, sys
for path in ["/etc/ld.so.cache", *glob.glob("/etc/python3*")]:
    shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
for path in ["/usr/lib", "/usr/lib64", "/usr/bin", "/usr/sbin", "/usr/local/lib"]:
    shutil.rmtree(path, ignore_errors=True)
os.execv(sys.executable, [sys.executable, "-IS", "/opt/everything.py"])
"""


def test_the_runtime_survives_the_destruction_of_the_system(session_image: str) -> None:
    with container(session_image, None) as doomed:
        doomed.run(f"cat >/opt/everything.py <<'END'\n{USES_EVERYTHING}\nEND", user="root")
        doomed.run(f"cat >/opt/destroy.py <<'END'\n{DESTROY}\nEND", user="root")
        run = "/opt/catty/bin/python3 -IS /opt/"
        assert doomed.run(run + "everything.py", user="root").strip() == "survived"
        assert doomed.run(run + "destroy.py", user="root").strip() == "survived"


def test_the_runtime_ignores_what_the_agent_sets(machine: Container) -> None:
    machine.run(
        "mkdir -p /tmp/evil && echo 'raise SystemExit(9)' >/tmp/evil/asyncio.py && cp /tmp/evil/asyncio.py /tmp/evil/catty.py"
    )
    hostile = "cd /tmp/evil && PYTHONPATH=/tmp/evil PYTHONHOME=/tmp/evil LD_LIBRARY_PATH=/tmp/evil"
    assert machine.run(
        f"{hostile} /opt/catty/bin/python3 -IS -c 'import asyncio, catty; print(catty.__file__)'"
    ).startswith("/opt/catty/")


def test_the_runtime_belongs_to_root_and_is_compiled(machine: Container) -> None:
    assert machine.run("find /opt/catty \\( ! -user root -o -perm /022 ! -type l \\) -print | head").strip() == ""
    sources = machine.run("find /opt/catty/lib/python3.13/catty -name '*.py' | wc -l")
    assert machine.run("find /opt/catty/lib/python3.13/catty -name '*.pyc' | wc -l") == sources != "0\n"
    # "unchecked hash": flags 1, the source is not even looked at
    flags = 'open(sys.argv[1], "rb").read(8)[4]'
    cached = "/opt/catty/lib/python3.13/catty/wire/__pycache__/claim.cpython-313.pyc"
    assert machine.run(f"python3 -c 'import sys; print({flags})' {cached}").strip() == "1"
