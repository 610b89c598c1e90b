# make demo: train on a generated graph and print the comparison; make test: run every test.
# Both make .venv and install what they need on first use. PYTHON= chooses the interpreter.
# make test-asan: watch the memory accesses and the arithmetic of the CPU kernels under the tests of the ops;
# make test-tsan: watch their threads. Both need g++ with its sanitizers, and end at the first finding.
# make bench: time the kernels; BENCH= passes arguments on, such as BENCH='--figure 1,2 --quick' or BENCH=--help.
# make bench-gpu PYTHON=...: the same on a GPU, with an interpreter that has torch, numpy, cmake and ninja.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
LINTED := .venv/.lint-installed
BENCHED := .venv/.bench-installed
BENCH ?=
# Small enough for five minutes on two cores; every contender gets the same.
DEMO := homophily-100k --order metis --batching partition --epochs 20 --layers 2 --hidden 64 --dim 64 --lr-cores 0.01,0.1,1
SOURCES := $(shell find csrc -type f)

# Folder of the libraries that `make cuda` builds, for the PYTHON that it is given.
CUDA := build/cuda

# Neither code that inductor compiles nor the memory that a sanitizer adds is that of the kernels.
SANITIZED := tests/test_ops.py tests/test_bag.py tests/test_bags.py tests/test_linear_op.py tests/test_messages.py \
  tests/test_pointwise.py tests/test_narrow_conv.py tests/test_sample_edges.py tests/test_preferential.py \
  tests/test_sample_neighbors.py tests/test_transpose.py tests/test_attend.py \
  -k "not test_compile_with_the_default_backend and not test_no_row_of_every_id_is_made and not test_every_instruction_set"

# Where a test takes the fixture device, or needs a GPU.
ON_GPU := tests/test_ops.py tests/test_messages.py tests/test_attend.py tests/test_bag.py tests/test_bags.py \
  tests/test_linear_op.py tests/test_pointwise.py tests/test_narrow_conv.py tests/test_nn.py tests/test_nn_bag.py \
  tests/test_collection.py tests/test_hot_rows.py tests/test_hashing.py tests/test_conv.py tests/test_dlrm.py \
  tests/test_train.py tests/test_folder.py tests/test_rec.py tests/test_cnn.py

.PHONY: demo test test-asan test-tsan test-gpu bench bench-gpu cuda lint format clean

demo: $(INSTALLED)
	$(BIN)/ttgraph compare $(DEMO)

# As many processes as there are cores, each of one thread, and one for all tests of a file.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# Three threads, though torch would take no more than there are cores. python and torch are not built for a sanitizer:
# its runtime is loaded before them, and that of C++ for its exceptions; python frees not all it took, so leaks are not
# looked for; torch's mutexes are seen in part, and the kernels have none. Findings are written past pytest.
test-asan: SANITIZERS := address,undefined
test-tsan: SANITIZERS := thread
test-asan test-tsan: test-%: $(INSTALLED)
	$(BIN)/cmake -S csrc -B build/$* -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DCMAKE_CXX_COMPILER=g++ \
	  -DTTGRAPH_SANITIZE=$(SANITIZERS) -DTTGRAPH_CUDA=OFF -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python
	$(BIN)/cmake --build build/$*
	LD_PRELOAD="$$(g++ -print-file-name=lib$*.so) $$(g++ -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  TSAN_OPTIONS=halt_on_error=1:report_mutex_bugs=0:suppressions=$(CURDIR)/tests/tsan.supp \
	  OMP_NUM_THREADS=3 MKL_DYNAMIC=FALSE TTGRAPH_LIBRARY=$(CURDIR)/build/$* \
	  $(BIN)/python -m pytest --capture=sys -W "error:ttgraph runs without" $(SANITIZED)

# With a PYTHON that has torch >= 2.10 with CUDA, pytest, hypothesis, cmake and ninja; nothing is installed. Files of
# tests that need more, such as those of the training jobs, which need what pyproject.toml lists, are errors without it.
test-gpu: cuda
	TTGRAPH_LIBRARY=$(CURDIR)/$(CUDA) PYTHONPATH=$(CURDIR) $(PYTHON) -m pytest -m gpu --continue-on-collection-errors \
	  $(ON_GPU)

bench: $(BENCHED)
	$(BIN)/python tests/bench/kernels.py $(BENCH)

bench-gpu: cuda
	TTGRAPH_LIBRARY=$(CURDIR)/$(CUDA) PYTHONPATH=$(CURDIR) $(PYTHON) tests/bench/kernels.py --device cuda $(BENCH)

# The CUDA kernels compile on a machine without a GPU, too.
cuda:
	cmake -S csrc -B $(CUDA) -G Ninja -DCMAKE_BUILD_TYPE=Release -DTTGRAPH_CUDA=ON \
	  -DPython_EXECUTABLE=$(shell command -v $(PYTHON))
	cmake --build $(CUDA)

lint: $(LINTED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(filter %.cpp %.h %.cu %.cuh,$(SOURCES))
	$(BIN)/mypy

format: $(LINTED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(filter %.cpp %.h %.cu %.cuh,$(SOURCES))

# torch comes first, by itself, so that the library is built against the very one that will load it.
$(INSTALLED): pyproject.toml constraints.txt $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt scikit-build-core cmake ninja
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[test]'
	touch $@

$(LINTED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[test,dev]'
	touch $@

$(BENCHED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[test,bench]'
	touch $@

clean:
	rm -rf .venv build
