# A fresh Linux machine with Rust and Python 3 (with pip or venv) needs no more than `make run` and `make test`.

CARGO ?= cargo
# Where the built programs are; cargo's own variable moves it.
TARGET := $(or $(CARGO_TARGET_DIR),target)
# `make run UPSTREAM=postgres://user@host:5432/database` stands in front of an existing database.
UPSTREAM ?=
LISTEN ?= 127.0.0.1:6432
ADMIN ?= 127.0.0.1:6433

# Where `make demo` puts its reports.
REPORTS ?= $(TARGET)/chaos-report
PGBOUNCER := $(firstword $(shell command -v pgbouncer) $(wildcard /usr/sbin/pgbouncer))

.PHONY: run test bench demo fmt clippy

run:
	$(CARGO) build --release --package tidegate --package tidegate-chaos
	@exec $(TARGET)/release/tidegate-chaos dev --tidegate $(TARGET)/release/tidegate \
		--listen $(LISTEN) --admin $(ADMIN) $(if $(UPSTREAM),--upstream '$(UPSTREAM)')

test:
	@.ci/test

bench:
	$(CARGO) build --release --package tidegate --package tidegate-benches
	$(CARGO) bench --package tidegate-benches --bench frame --bench checkout
	@exec $(TARGET)/release/pgbench-table --tidegate $(TARGET)/release/tidegate

# Stuck writes, without a proxy, behind PgBouncer and behind tidegate, side by side. Claims that the first two
# refute are the point, not a failure.
demo:
	$(CARGO) build --release --package tidegate --package tidegate-chaos
	@$(TARGET)/release/tidegate-chaos run write-stall --seed 1 --service plain --out $(REPORTS) --subject direct \
		$(if $(PGBOUNCER),--subject pgbouncer --pgbouncer $(PGBOUNCER)) --subject tidegate || true
	@echo 'look at $(REPORTS)/write-stall/report.html'

fmt:
	$(CARGO) fmt --all

clippy:
	$(CARGO) clippy --workspace --all-targets -- --deny warnings
