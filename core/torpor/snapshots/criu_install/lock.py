"""The Debian packages of CRIU 4.2.1 and of every library that it loads, for x86-64, as apt resolved and verified them.

Source: `apt-get --print-uris install criu` with a separate apt state for the suite `forky`; the sums are from the signed package
lists. Left out are dependencies from which CRIU loads nothing (gcc-16-base, libc-gconv-modules-extra).
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["LOCK", "SUITES", "Deb"]


class Deb(NamedTuple):
    """A package file: its path below a mirror's root (URL-quoted), SHA-256, and size in bytes."""

    path: str
    sha256: str
    size: int

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.rpartition("/")[2]


SUITES = ("forky", "sid")
"""Suites to search, in this order, for the current version when a locked file has left the mirror."""

LOCK = (
    Deb(
        "pool/main/g/gcc-16/libgcc-s1_16.2.0-3_amd64.deb",
        "e716dc8baad27e884c45ff83a76955047a7a9e33a80e94f9459ee996ebb800b0",
        74048,
    ),
    Deb(
        "pool/main/g/glibc/libc6_2.43-7_amd64.deb",
        "5c71715c51103beb4fbba9fe9f8dff604af6610dfa71c70bff342f54a7860803",
        1866392,
    ),
    Deb(
        "pool/main/libm/libmd/libmd0_1.3.0-1_amd64.deb",
        "b93615e08319799bedd98a68643d607b06a7713365f829fb3cae131f8a3b81b1",
        45420,
    ),
    Deb(
        "pool/main/libb/libbsd/libbsd0_0.12.2-3_amd64.deb",
        "0383e47d704a5e58080606cbcafd2f2aa725702767ccf8b877fb224d04ff38c5",
        131912,
    ),
    Deb(
        "pool/main/g/gmp/libgmp10_6.3.0%2bdfsg-5%2bb2_amd64.deb",
        "032743c787f0e1e644e4dcfbdb38f01be8cb150cb9633f8be5e79aba6938f349",
        559860,
    ),
    Deb(
        "pool/main/n/nettle/libnettle8t64_3.10.2-1%2bb1_amd64.deb",
        "213f9f0119cd63efc2529401547bad5f6d2cea4cae5d05cffdef22f19aabb30e",
        305348,
    ),
    Deb(
        "pool/main/n/nettle/libhogweed6t64_3.10.2-1%2bb1_amd64.deb",
        "d5872392a9d3b9b6e06f3dbd07a3f954346226d9fa2f318c4a3b5732b060fc44",
        334792,
    ),
    Deb(
        "pool/main/libu/libunistring/libunistring5_1.4.2-1_amd64.deb",
        "509fb596f6b4de34f1d9cb5a0001abc3c6c51f4800e908ef888262ebdaaefa3b",
        479564,
    ),
    Deb(
        "pool/main/libi/libidn2/libidn2-0_2.3.8-5_amd64.deb",
        "25a38f7d9ba5bb3daf47a21ad5d348303e602f3c9037a48d621683fe87e7ce28",
        108596,
    ),
    Deb(
        "pool/main/libf/libffi/libffi8_3.8.0-2_amd64.deb",
        "8f52979b2f3831088c419aae858f10fd3ad7e42cc6c1d28967bae996a98223a4",
        32472,
    ),
    Deb(
        "pool/main/p/p11-kit/libp11-kit0_0.26.5-1_amd64.deb",
        "7f6187247766dca57582c4fa327928fb612de3cd17a13786c1762c57357b4930",
        482444,
    ),
    Deb(
        "pool/main/libt/libtasn1-6/libtasn1-6_4.21.0-2%2bb1_amd64.deb",
        "097059368c29f6bac5253cc9a4ee3b8c2f449326de016feddf5a00b896fabe49",
        49292,
    ),
    Deb(
        "pool/main/g/gnutls28/libgnutls30t64_3.8.13-1_amd64.deb",
        "81f7f28a3968228293cabf6a92f7d6b2a8807f64ccf57469f2ce9a06b7b226af",
        1545536,
    ),
    Deb(
        "pool/main/libn/libnet/libnet9_1.3%2bdfsg-3%2bb2_amd64.deb",
        "2a27e79bb376a1052a77b6373e17b3c2e71b2b2d15bc05d899f2a6318e5d36ea",
        55704,
    ),
    Deb(
        "pool/main/j/jansson/libjansson4_2.15.1-1_amd64.deb",
        "024a1537ca17a8215c7b03c6e84ea961ae96d3ecce9cd1db6a5226c180568419",
        65632,
    ),
    Deb(
        "pool/main/libm/libmnl/libmnl0_1.0.5-3%2bb2_amd64.deb",
        "5c058833d7f95cea335627f8ae48dbac38749493867ed3151113150e1612b264",
        12200,
    ),
    Deb(
        "pool/main/libn/libnftnl/libnftnl11_1.3.2-1_amd64.deb",
        "409b62c0d383ae181e3550d0ec9279359856d98a449d8bce9983f69e1995dbc6",
        69672,
    ),
    Deb(
        "pool/main/i/iptables/libxtables12_1.8.13-1_amd64.deb",
        "08ca0b50ecc24b84faf75716b4a7a279a5e5fb01d7a5c602fe3f473b6d9ffcb9",
        30468,
    ),
    Deb(
        "pool/main/n/nftables/libnftables1_1.1.7-3_amd64.deb",
        "a9fe852108aa99288b9305534203869e406aedaebeb833a48a32c48e50affd75",
        364060,
    ),
    Deb(
        "pool/main/libn/libnl3/libnl-3-200_3.12.0-2%2bb1_amd64.deb",
        "a5ca78bbb9d5cc067b78952c5d38b7caac831d42e94b85b91edf1f6f00dfd48a",
        62208,
    ),
    Deb(
        "pool/main/p/protobuf-c/libprotobuf-c1_1.5.1-1%2bb2_amd64.deb",
        "8f0f2c76c4574b986aec4d3ed53e5b5939a8ce26c21294adf9020ebed9d2b3da",
        21208,
    ),
    Deb(
        "pool/main/u/util-linux/libuuid1_2.42.4-1_amd64.deb",
        "bdef15911ca5748219f5257bf4f1e81444fb40966499c02b1176bfbbcd9a2d08",
        34456,
    ),
    Deb(
        "pool/main/c/criu/libcompel1_4.2.1-1_amd64.deb",
        "c41087440d28973c9abc04dcd31674a28969e5dc0cefde5023a89aaf07ef357d",
        64424,
    ),
    Deb(
        "pool/main/c/criu/criu_4.2.1-1_amd64.deb",
        "4039578de7dd6480964754c1348416f0f0658fba3eadaa918bfe43e9a5fb9b04",
        556568,
    ),
)
