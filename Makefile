# Everything works on a fresh Debian 12 machine, as root or with sudo: each target
# first brings what it needs (make setup, which says what it installs).

SHELL := /bin/bash
SYSTEM ?= tiny
STORY ?=
PAIRS ?=
SLOW ?=
QUICK ?=
AGAIN ?=
RUN ?=
SCORE ?=
FUZZTIME ?= 60s
TARGET ?=
.DEFAULT_GOAL := help
.PHONY: help setup demo test unit explore stories long fuzz lint size bench-delta mutants proof image clean

# The go command of the version in go.mod, fetched if the machine has none; as a
# name on PATH, because tests and factory call it too.
go = PATH="$$(dirname "$$(.ci/go.sh)"):$$PATH" go

help:  ## this list
	@echo "make TARGET"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 15
	@echo
	@echo "  make demo SYSTEM=debian       with Debian 12 instead of the tiny system"
	@echo "  make stories STORY=usb_stick  one story"
	@echo "  make bench-delta PAIRS=advised,firmware   some pairs; SLOW=1 runs the slow peers on all"

setup:  ## installs what build, tests and lab need; says so first
	@.ci/setup.sh

demo: setup  ## boots a device in QEMU, updates it over MQTT, then sends it a release that hangs
	@$(go) run ./tests/cmd/demo -system $(SYSTEM)

test: setup  ## build, lint, unit tests, stories in QEMU, size; where the time went
	@.ci/test.sh

unit: setup  ## unit tests only
	$(go) test -short -timeout 20m ./...

explore: setup  ## a million power cuts and faults in memory, thousands of them to the end
	TANDEM_EXPLORE=1 $(go) test -timeout 40m -count=1 -v -run '^TestExplorer$$' ./updater

stories: setup  ## the stories only (STORY=name for one)
	$(go) test -v -count=1 -timeout 50m -parallel 2 -run 'TestStories/$(STORY)' ./tests

long: setup  ## five power cuts during an update of Debian; 100,000 damaged deltas, 2,000 broken links
	TANDEM_LONG=1 $(go) test -v -count=1 -timeout 40m -run 'TestCompressedCorruption|TestInterruptedAnywhere' ./updater/delta/mkdelta ./updater
	TANDEM_LONG=1 $(go) test -v -count=1 -timeout 80m -run 'TestLong/$(STORY)' ./tests

fuzz: setup  ## every fuzz target for FUZZTIME (60s): about 40 minutes; TARGET=journal.FuzzParse for one
	@FUZZTIME="$(FUZZTIME)" TARGET="$(TARGET)" .ci/fuzz.sh

proof: setup  ## one page of what was tested and what came of it: build/proof.html, .txt; hours (QUICK=1 for CI's sample, AGAIN=1 to go on after an interruption)
	$(go) run ./tests/cmd/proof $(if $(QUICK),-quick) $(if $(AGAIN),-again)

lint: setup  ## form, vet, and the rules of this tree
	@.ci/lint.sh

size: setup  ## size of the device program on amd64 and arm64, against its budget, and by feature
	@.ci/size.sh

bench-delta: setup  ## deltas of Debian images beside xdelta3, bsdiff, zstd, casync …: hours; PAIRS=firmware is quick
	@.ci/setup.sh tests/bench/packages.txt
	@mkdir -p build/bin
	$(go) build -o build/bin/bench ./tests/bench
	build/bin/bench -pairs "$(PAIRS)" $(if $(SLOW),-slow)

mutants: setup  ## bugs put in on purpose, each of which a test has to notice (RUN=name for some); SCORE=60: so many random ones per package
	$(go) run ./tests/mutants -run "$(RUN)" $(if $(SCORE),-random $(SCORE) -out build/mutation-score.json)

image: setup  ## a disk image of the board qemu-x86_64 in build/image
	$(go) build -o build/bin/tandem ./updater/cmd/tandem
	$(go) run ./tests/factory/cmd/factory -o build/image -system $(SYSTEM)

clean:  ## removes what was built; build/kernel, build/debian, build/bench and .cache stay
	rm -rf build/bin build/factory build/stories build/lab build/image build/demo build/*.log build/*.txt
	$(go) clean -testcache
