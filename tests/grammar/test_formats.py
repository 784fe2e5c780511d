"""Formats: what is written is of the format by other readers too, and what people write of it can be written."""

from __future__ import annotations

import functools
import json

import pytest

from llm_diffusiongemma.grammar.dfa import ByteDFA
from llm_diffusiongemma.grammar.formats import FORMATS
from llm_diffusiongemma.grammar.samples import random_texts
from llm_diffusiongemma.grammar.schema import compile_schema, schema_language
from tests.grammar.formats import format_checker

CHECKER = format_checker()

WRITTEN = {
    "date": "2024-02-29 0004-02-29 9999-12-31",
    "date-time": "1963-06-19T08:30:06.283185Z 1990-12-31T15:59:50-08:00 2024-05-01T12:00:00.123456789+00:00",
    "time": "08:30:06Z 23:59:59.5+05:30",
    "duration": "P4DT12H30M5S P4Y PT0S P0D P1M PT1M PT36H P1DT12H P2W P1Y6M P1Y2M3DT4H5M6S PT86400S",
    "uuid": "2eb8aa08-aa98-11ea-b4aa-73b441d16380 2EB8AA08-AA98-11EA-B4AA-73B441D16380",
    "email": "joe.bloggs@example.com o'brien+tag@mail.example.co.uk te~st@example.com 2962@a.io x@db-1.a9.org",
    "ipv4": "192.168.0.1 255.255.255.255 0.0.0.0 87.10.0.1",
    "ipv6": "::1 :: 2001:db8::1 ::abef 1::d6:192.168.0.1 1:2::192.168.0.1 ::ffff:192.168.0.1 1:2:3:4:5:6:7:8"
    " d6:: ::42:ff:1 1:d6::42 1:2:3:4:5:6:7:: ::2:3:4:5:6:7:8 fe80::a:b:c:d 1:2:3:4:5:6:1.2.3.4",
    "hostname": f"localhost www.example.com db-1 1host hostnam3 a.b.c.d.e.f.g {'a' * 63}.com 3com.example.org"
    f" {'.'.join(['a' * 31] * 7)} {'.'.join(['a' * 63] * 3)}.{'a' * 61} {'a.' * 60}com",
    "uri": "http://foo.bar/?baz=qux#quux http://localhost:8080/a http://127.0.0.1:5000 http://[::1]:8080/x"
    " ftp://a.b http://foo.com/blah_(wikipedia)_blah#cite-1 urn:oasis:names:specification:docbook:dtd:xml:4.1.2"
    " tel:+1-816-555 mailto:John.Doe@example.com"
    " http://user:pw@db_1.internal:65535/ https://xn--nw2a.xn--j6w193g/ about:blank"
    " ldap://[2001:db8::7]/c=GB?objectClass?one file:///etc/hosts postgres://u:p@h/db s3://bucket/a//b"
    " localhost:5050 http://-.~_!$&'()*+,;=:%40:80%2f::::::@example.com"
    " http://a.b/%20x?y=/?&#/?z https://a.com?x=1 data:,x",
    "uri-reference": "/abc ../a/b.json #frag ?q=1 a/b:c //cdn.example.com/x.js x.json http://foo.bar/ ./a:b .",
    "iri": "http://ƒøø.ßår/?∂éœ=πîx#πîüx https://例え.jp/道 http://a.b/ urn:ä",
    "iri-reference": "/âππ #ƒräg ö/x",
    "uri-template": "http://example.com/dictionary/{term:1}/{term} /a{?x,y*}{&z}{#f}{+p.q} plain {/id*}",
    "json-pointer": "/foo/0 / /a~1b /c%d /m~0n /é /a\\\\b",
    "relative-json-pointer": "0 1 0# 2/a 0/foo/bar 3# 10/x",
}
UNWRITTEN = {
    "date": "1998-13-01 1998-04-31 2021-02-29 0000-01-01 1963-6-19 98-01-01",
    "date-time": "1990-02-31T15:59:59Z 1990-12-31T15:59:59-24:00 1963-06-19T08:30:06 1990-12-31T24:00:00Z",
    "time": "08:30:06 24:00:00Z 12:60:00Z",
    "duration": "PT1D P P1YT PT 4DT12H P1D2H P2S P1Y2W P1 P1Y1D PT1H5S P1YT1H5S P-1D P1W2D",
    "uuid": "2eb8aa08aa9811eab4aa73b441d16380 2eb8-aa08-aa98-11ea-b4aa73b44-1d16380",
    "email": "2962 joe@localhost .test@example.com te..st@example.com test.@example.com a@b a@-b.com a@b..com",
    "ipv4": "256.1.1.1 1.2.3 01.2.3.4 1.2.3.4.5 1.2.3.4/24",
    "ipv6": "12345:: :1 1: 1::2::3 1:2:3:4:5:6:7:8:9 1:2:3:4:5:6:7::8:9 ::g 1:2:3:4:5:6:7 1:2:3:4:1.2.3.4"
    " ::1.2.3.256 1:2:3:4:5:6:7:1.2.3.4 ::1%eth0 ::1/64 1::1.2.3.4:5 :::",
    "hostname": f"-a a- a..b .a a. a_b ab--cd xn--x a.-b 123 1.2.3.4 {'a' * 64}.com {'a.' * 126}com x.{'a' * 64}"
    f" {'.'.join(['a' * 63] * 4)}",
    "uri": "/abc //a.b :// http: http:// http:///x http:a https:?x HTTP:x bar,baz:x 1a:b a.b http://a.b:65536"
    " http://[1:2]/ http://256.1.1.1/ http://é.com http://a.b/[x] http://a.b/%zz http://a@b@c c:/x x:",
    "uri-reference": "\\\\x :a 1:b #a#b %zz a[0] é http: ///a",
    "iri": "/abc http:// http://a.b/\u3000 http://a.b/\u202ex",
    "iri-reference": "\\\\é #ä#b",
    "uri-template": "{ {term {a b} {} {$x} a}b {a:0} {a:12345} <",
    "json-pointer": "a /~ /~2 #/a",
    "relative-json-pointer": "/a # -1 01 1.0 a 0##",
}


def text_of(value: str) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


@functools.cache
def language_of(name: str) -> ByteDFA:
    return schema_language({"type": "string", "format": name})


def test_there_are_texts_of_all_formats() -> None:
    assert WRITTEN.keys() == UNWRITTEN.keys() == FORMATS


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_texts_of_a_format(name: str) -> None:
    dfa = language_of(name)
    written, unwritten = WRITTEN[name].split(" "), UNWRITTEN[name].split(" ")
    assert [text for text in written if not dfa.accepts(f'"{text}"'.encode())] == []
    assert [text for text in unwritten if dfa.accepts(f'"{text}"'.encode())] == []
    # The readers below can tell these apart, or leave more room than we do.
    assert [text for text in written if not CHECKER.conforms(json.loads(f'"{text}"'), name)] == []


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_other_readers_agree(name: str) -> None:
    dfa = language_of(name)
    for seed, soft_length in enumerate((5, 40, 200)):
        for text in random_texts(dfa, 40, seed=seed, soft_length=soft_length):
            assert CHECKER.conforms(json.loads(text), name), text


@pytest.mark.parametrize(
    ("name", "longest", "states", "inside", "outside"),
    [
        # As Pydantic writes HttpUrl.
        ("uri", 2083, 6500, ["https://a.com/" + "x" * 150, "http://[::1]:80/", "a" * 11 + ":b"], ["http:"]),
        ("uri", 32, 200, ["https://a.com/x"], ["https://example.com/" + "x" * 13]),
        ("uri", 20, 2000, ["https://example.com/", "http://u@[::1]:80/x"], ["https://example.com/x"]),
        ("uri-reference", 64, 1000, ["/" + "x" * 63, "", "//a.b"], ["/" + "x" * 64]),
        ("iri", 64, 1000, ["http://a.b"], ["http://é.b"]),
        ("email", 1024, 500, ["a@" + "b" * 50 + ".de"], ["a@b"]),
        ("email", 40, 200, ["ada.lovelace@mail.org"], ["a" * 20 + "@" + "b" * 17 + ".de"]),
        ("hostname", 80, 500, ["a." * 30 + "com"], ["a." * 39 + "com"]),
        ("json-pointer", 10, 200, ["/" + "é" * 9], ["/" + "é" * 10]),
    ],
)
def test_counted_formats(name: str, longest: int, states: int, inside: list[str], outside: list[str]) -> None:
    """Counted as wholes, these had states by the ten thousand."""
    compiled = compile_schema({"type": "string", "format": name, "maxLength": longest})
    assert len(compiled.dfa.accepting) <= states
    assert [text for text in inside if not compiled.dfa.accepts(text_of(text))] == []
    assert [text for text in outside if compiled.dfa.accepts(text_of(text))] == []
    for text in random_texts(compiled.dfa, 20, soft_length=min(longest, 200)):
        assert len(json.loads(text)) <= longest
        assert CHECKER.conforms(json.loads(text), name), text
