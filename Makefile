# Two commands on a fresh machine with Python 3.11 and make: `make demo` and `make test`.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

TRL := .venv-trl
REMOTE := .venv-remote
RAY := .venv-ray
PEERS := .venv-bench
VLLM := .venv-vllm
LLAMA_CPP := .venv-llama-cpp

.PHONY: demo test check quick docs docs-version format lint types layers tests long-tests test-kill test-trl test-remote test-ray ray-kills array-kills \
	test-browser test-peers test-servers test-floors test-newest test-fake-gpu gpu-check bench bench-quick \
	bench-full bench-start bench-page bench-prompts bench-scaling bench-many-rows train-demo picture clean \
	help dist man licences try-wheel try-completion release-check

demo: $(INSTALLED)  ## set up, then score a sample text with the built-in model
	$(BIN)/seqloss score samples/text.txt

test: $(INSTALLED) check  ## set up, then check

check: $(INSTALLED) format lint types layers tests

quick: $(INSTALLED) format lint types layers  ## check without the tests that take over half a second
	$(BIN)/python -m pytest -n 2 --dist worksteal \
		-m 'not long and not trl and not slow and not peers and not browser and not fake_gpu and not servers and not remote and not ray'

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	touch $@

format:
	$(BIN)/ruff format --check .

lint:
	$(BIN)/ruff check .

types:
	$(BIN)/mypy

layers:
	$(BIN)/lint-imports --no-logo

tests:
	$(BIN)/python -m pytest -n 2 --dist worksteal

long-tests: $(INSTALLED)  ## write the list of tests over half a second anew (on a quiet machine)
	$(BIN)/python -m pytest -n 2 --dist worksteal --write-long

test-kill: $(INSTALLED)  ## kill -9 at fifty random moments, and resume (minutes)
	$(BIN)/python -m pytest -m slow tests/results/test_resume.py

.PHONY: test-parts
test-parts: $(INSTALLED)  ## Parts of every type of model that is said to have been compared with the whole
	$(BIN)/python -m pytest -n 0 -m slow tests/backends/test_tensor_parallel.py

test-trl:  ## hold `mask --like trl` to TRL itself, in an environment of its own
	$(PYTHON) -m venv $(TRL)
	$(TRL)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(TRL)/bin/python -m pip install --quiet --constraint constraints.txt --editable . --group dev \
		--requirement benchmarks/trl-requirements.txt
	$(TRL)/bin/python -m pytest -m trl tests/tokenization/test_trl.py

test-remote:  ## object stores, a hub (servers on loopback) and data sets, in an environment of its own
	$(PYTHON) -m venv $(REMOTE)
	$(REMOTE)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(REMOTE)/bin/python -m pip install --quiet --editable '.[parquet,remote,datasets]' 'torch==2.13.0' \
		'hypothesis' 'jsonschema' 'pytest' 'pytest-xdist' --group remote
	$(REMOTE)/bin/python -m pytest -m remote tests/cli/test_s3.py tests/cli/test_gs.py \
		tests/cli/test_hub.py tests/inputs/test_datasets.py

test-ray: $(RAY)/.installed  ## workers of a real Ray on this machine, killed, in an environment of its own
	$(RAY)/bin/python -m pytest -m ray -n 0 tests/cli/test_ray.py

ray-kills: $(RAY)/.installed  ## a million rows by them, with a worker, a node and the driver killed
	$(RAY)/bin/python tools/ray_kills.py --rows 1000000

array-kills: $(INSTALLED)  ## a million rows by an array of tasks that xargs starts, some of them killed
	$(BIN)/python tools/array_kills.py --rows 1000000

$(RAY)/.installed: pyproject.toml
	$(PYTHON) -m venv $(RAY)
	$(RAY)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(RAY)/bin/python -m pip install --quiet --editable '.[parquet,ray,serve]' 'torch==2.13.0' \
		'hypothesis' 'jsonschema' 'pytest' 'pytest-xdist'
	touch $@

test-browser: $(INSTALLED)  ## pages of results in a real Chromium, which apt-get installs if needed
	command -v chromium > /dev/null || { apt-get update && apt-get install --yes chromium; }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group browser
	$(BIN)/python -m pytest -m browser -s tests/display/test_browser.py

docs: $(INSTALLED)  ## the site of docs/, in site/: warnings and dead links are errors
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group docs
	$(BIN)/python tools/commands_page.py
	$(BIN)/python tools/columns_page.py
	$(BIN)/zensical build --clean --strict

SITES ?= sites

docs-version: docs  ## this version's site, beside those of others in SITES
	$(BIN)/python tools/docs_versions.py $(SITES)

picture: $(INSTALLED)  ## the README's pictures of a heat map and of a page of results, with that Chromium
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group browser
	$(BIN)/python tools/report_picture.py

test-peers: $(PEERS)/.installed  ## hold figures to lm-evaluation-harness, in its environment
	$(PEERS)/bin/python -m pip install --quiet --constraint constraints.txt --group dev
	$(PEERS)/bin/python -m pytest -m peers tests/cli/test_peers.py \
		tests/models/test_gguf_vocabulary.py

# Environments that were made before are named with VLLM=, LLAMA_CPP= and PEERS=.
test-servers: $(INSTALLED) $(VLLM)/.installed $(LLAMA_CPP)/.installed $(PEERS)/.installed  ## scores \
		by vLLM and llama-cpp-python; other programs that ask `seqloss serve` (gigabytes, half an hour)
	VLLM_VENV=$(VLLM) LLAMA_CPP_VENV=$(LLAMA_CPP) PEERS_VENV=$(PEERS) \
		$(BIN)/python -m pytest -m servers -s tests/servers

$(VLLM)/.installed: benchmarks/vllm-requirements.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(VLLM)/bin/python -m pip install --quiet --requirement $<
	# Built for CUDA: they do not load with a torch for CPUs, and vLLM does without.
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchcodec torchaudio
	$(VLLM)/bin/python tools/name_vllm.py
	touch $@

$(LLAMA_CPP)/.installed: benchmarks/llama-cpp-requirements.txt
	$(PYTHON) -m venv $(LLAMA_CPP)
	$(LLAMA_CPP)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(LLAMA_CPP)/bin/python -m pip install --quiet --requirement $<
	touch $@

test-floors: $(INSTALLED)  ## the tests that matter with the lowest versions of every range
	$(BIN)/python tools/floors.py lowest

test-newest: $(INSTALLED)  ## the same with the newest versions that install beside torch 2.13.0
	$(BIN)/python tools/floors.py newest

# A build of torch for CUDA, which needs no GPU here: what the registry has for another Python.
FAKE_PYTHON ?= python3.13
FAKE_TORCH ?= 2.13.0 2.11.0

test-fake-gpu:  ## every path of the engine on a GPU of shapes alone (gigabytes, deleted after)
	for torch in $(FAKE_TORCH); do \
		$(FAKE_PYTHON) -m venv .venv-fake && \
		.venv-fake/bin/python -m pip install --quiet --upgrade 'pip>=25.1' && \
		.venv-fake/bin/python -m pip install --quiet "torch==$$torch" . 'hypothesis' 'jsonschema' \
			'pytest' 'pytest-xdist' && \
		.venv-fake/bin/python -m pytest -n 2 -m fake_gpu tests/backends/test_fake_tensors.py \
			|| exit 1; \
		rm -rf .venv-fake; \
	done

gpu-check:  ## what a GPU shows in ten minutes, with the torch and transformers that are there
	$(PYTHON) benchmarks/gpu_check.py

bench: $(PEERS)/.installed  ## speed and memory against the peers (half an hour or more)
	$(PEERS)/bin/python benchmarks/bench.py

bench-quick: $(PEERS)/.installed  ## the same with few rounds and short documents
	$(PEERS)/bin/python benchmarks/bench.py --quick

bench-full: $(PEERS)/.installed  ## the same with all documents and a million rows
	$(PEERS)/bin/python benchmarks/bench.py --full

$(PEERS)/.installed: pyproject.toml constraints.txt benchmarks/peers-requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(PEERS)/bin/python -m pip install --quiet --constraint constraints.txt --editable . \
		--requirement benchmarks/peers-requirements.txt
	touch $@

bench-prompts: $(INSTALLED)  ## common prompts computed once, against each time
	$(BIN)/python benchmarks/shared_prompts.py

# A Python of an environment with vLLM; without one its sides are left out.
VLLM_PYTHON ?=

bench-servers: $(INSTALLED)  ## scoring here, through `seqloss serve`, and through and in vLLM
	$(BIN)/python benchmarks/servers.py $(if $(VLLM_PYTHON),--vllm $(VLLM_PYTHON))

bench-scaling: $(INSTALLED)  ## costs and rates of shards here, and what they come to on many GPUs
	$(BIN)/python benchmarks/scaling.py costs
	$(BIN)/python benchmarks/scaling.py rates
	$(BIN)/python benchmarks/scaling.py tables

ROWS ?= 100000

bench-many-rows: $(INSTALLED)  ## ROWS rows on a stub engine, with failures drawn at random
	$(BIN)/python benchmarks/many_rows.py --ids --rows $(ROWS)

bench-page: $(INSTALLED)  ## a page of 50,000 tokens in Chromium (see test-browser)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group browser
	$(BIN)/python benchmarks/pages.py

bench-start: $(INSTALLED)  ## start-up times against bare scripts
	$(BIN)/python benchmarks/startup.py

train-demo: $(INSTALLED)  ## train the built-in model again (under an hour)
	$(BIN)/python tools/train_demo.py

# -- releases --------------------------------------------------------------------------------------

RELEASE := $(VENV)/.release

$(RELEASE): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group release
	touch $@

dist: $(RELEASE)  ## build the wheel and the sdist
	rm -rf dist
	$(BIN)/python -m build --installer=pip --outdir dist .

man: $(INSTALLED)  ## man pages of the program's own help, in build/man
	$(BIN)/python tools/man_page.py

licences: $(RELEASE)  ## list all licences, and check that they are compatible with ours
	$(BIN)/python tools/licences.py

try-wheel: dist  ## score with wheel and sdist in empty environments of every Python that is there
	$(BIN)/python tools/try_wheel.py $(TRY)

try-completion: $(INSTALLED)  ## complete in bash, zsh and fish, as far as they are installed
	$(BIN)/python tools/try_completion.py

TAG ?=

release-check: $(RELEASE)  ## all of these, the version, workflows and container; prints what is missing
	$(BIN)/python tools/release_check.py $(if $(TAG),--tag $(TAG))

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/\1: \2/p' Makefile

clean:
	rm -rf dist build
	rm -rf $(VENV) $(TRL) $(REMOTE) $(RAY) $(PEERS) .venv-vllm .venv-llama-cpp .venv-fake
