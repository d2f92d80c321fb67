"""The service over HTTP: a real client, a real server in a process of its own."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import artefacts
import httpx2
import pytest
from conftest import PROFILE
from hypothesis import given
from hypothesis import strategies as st

from rectutor import artefact, load, serve
from rectutor.artefact import Service, write

QUICKLY = ("--every", "0.05")  # looks for another version 20 times a second


@pytest.fixture(scope="module")
def running(served):
    with load.started(served, *QUICKLY) as service:
        yield service


@pytest.fixture(scope="module")
def client(running):
    with httpx2.Client(base_url=running.url, timeout=60) as asking:
        yield asking


def ask(client, **question):
    return client.post("/recommendations", json=question)


def test_the_service_loads_no_framework(served):
    code = (
        "import sys; from rectutor import serve; serve.create_app(sys.argv[1]);"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, served], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert not loaded & {"keras", "jax", "tensorflow", "torch", "pandas", "scipy", "matplotlib"}
    assert {"fastapi", "onnxruntime", "faiss", "numpy"} <= loaded


@pytest.mark.parametrize("history", [[10], [20, 600, 30], [10 * n for n in range(1, 41)]])
def test_it_answers_what_the_artefact_recommends(history, client, served):
    answer = ask(client, history=history, k=7, exclude=[500]).raise_for_status().json()
    wanted = Service.load(served).recommend(history, 7, [500])
    assert answer == {
        "recommendations": [vars(movie) for movie in wanted],
        "basis": "history",
        "artefact": artefact.current(served),
    }
    serve.Answer.model_validate(answer)


def test_without_a_history_it_answers_by_popularity(client, served):
    answer = ask(client, history=[]).raise_for_status().json()
    assert answer["basis"] == "popularity"
    assert answer["recommendations"] == [vars(m) for m in Service.load(served).recommend([])]


def test_health_says_what_is_served(client, served):
    assert client.get("/health").raise_for_status().json() == {
        "status": "ok",
        "artefact": artefact.current(served),
        "movies": artefacts.SIZE,
        "max_k": artefacts.CANDIDATES,
        "searches": "exact",
        "refused": None,
    }


def test_its_pages_describe_it(client):
    described = client.get("/openapi.json").raise_for_status().json()
    assert set(described["paths"]) == {"/recommendations", "/health"}
    answers = described["paths"]["/recommendations"]["post"]["responses"]
    assert set(answers) == {"200", "400", "413", "422"}
    page = client.get("/docs").raise_for_status().text
    assert "/openapi.json" in page
    for loaded in re.findall(r"(?:src|href)=\"([^\"]+)", page):  # from here, not from elsewhere
        assert loaded.startswith("/"), loaded
        assert client.get(loaded).status_code == 200


def test_the_collector_does_not_look_at_what_was_there_before_the_first_request(served):
    """A collection that looks at every module takes 40 ms, and all requests wait."""
    code = (
        "import asyncio, gc, sys; from rectutor import serve\n"
        "app = serve.create_app(sys.argv[1])\n"
        "async def look():\n"
        "    async with app.router.lifespan_context(app): print(len(gc.get_objects()))\n"
        "asyncio.run(look())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, served], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 1_000


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ({}, "body.history: Field required"),
        ({"history": [10, 7, "10"]}, "history has ids that are not in the catalogue: 7, '10'"),
        ({"history": ["\ud800"]}, "unable to parse"),
        ({"history": [10], "exclude": [11]}, "exclude has ids that are not in the catalogue: 11"),
        ({"history": [10], "k": 21}, "k is 21; it must be from 1 to 20"),
        ({"history": [10], "k": 10**30}, "k is 1000000000000000000000000000000; it"),
        ({"history": [10], "k": 0}, "body.k: Input should be greater than or equal to 1"),
        ({"history": [10], "k": "5"}, "body.k: Input should be a valid integer"),
        ({"history": [10], "k": True}, "body.k: Input should be a valid integer"),
        ({"history": [True]}, "body.history.0"),
        ({"history": [10.0]}, "body.history.0"),
        ({"history": [None]}, "body.history.0"),
        ({"history": "10"}, "body.history: Input should be a valid list"),
        ({"history": None}, "body.history: Input should be a valid list"),
        ({"history": ["x" * 201]}, "at most 200 characters"),
        ({"history": [10] * 5_001}, "at most 5000 items"),
        ({"history": [10], "user": 3}, "body.user: Extra inputs are not permitted"),
        ([10], "body: Input should be a valid dictionary"),
    ],
)
def test_a_wrong_value_is_named(question, said, client):
    answer = client.post(
        "/recommendations",
        content=json.dumps(question),
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 422
    assert said in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b'{"history": [NaN, Infinity]}', 422),
        (b'{"history": [' + b"9" * 5_000 + b"]}", 400),
        (b"\xff{}", 400),
        (b'{"history":' + b"[" * 50_000, 400),
        (b"{" + b" " * 1_000_000 + b"}", 413),
    ],
    ids=["empty", "cut", "NaN", "a long number", "no UTF-8", "deep", "a megabyte"],
)
def test_what_is_no_question_is_refused(body, status, client):
    headers = {"content-type": "application/json"}
    assert client.post("/recommendations", content=body, headers=headers).status_code == status

    def in_pieces():
        yield from (body[start : start + 65_536] for start in range(0, len(body), 65_536))

    answer = client.post("/recommendations", content=in_pieces(), headers=headers)
    assert answer.status_code == status
    assert client.get("/health").status_code == 200


def test_other_places_and_methods_are_refused(client):
    assert client.get("/").status_code == 404
    assert client.get("/recommendations").status_code == 405
    plain = {"content-type": "text/plain"}
    answer = client.post("/recommendations", content=b'{"history": []}', headers=plain)
    assert answer.status_code == 422


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([10, 20, 600])
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)
questions = st.fixed_dictionaries(
    {},
    optional={
        "history": values | st.lists(st.sampled_from([10, 20, 600])),
        "k": values | st.integers(1, 20),
        "exclude": values,
        "other": values,
    },
)


@st.composite
def bodies(draw):
    """Questions of all kinds, some with bytes put in or cut out, and plain bytes."""
    text = json.dumps(draw(questions | values)).encode()
    return draw(st.just(text) | st.binary(max_size=100) | spoiled(text))


def spoiled(text):
    places = st.integers(0, len(text))
    return st.builds(lambda at, to, new: text[:at] + new + text[to:], places, places, st.binary())


JSON = "application/json"  # any other type is refused before the body is read
TYPES = (*[JSON] * 7, "text/plain", "application/x-www-form-urlencoded", "a/b; charset=x")


# 50 in a short run; the nightly profile has 10 times 1,000
@pytest.mark.parametrize("turn", range(10 if PROFILE == "nightly" else 1))
@given(body=bodies(), kind=st.sampled_from(TYPES))
def test_nothing_that_is_sent_breaks_it(client, turn, body, kind):
    answer = client.post("/recommendations", content=body, headers={"content-type": kind})
    assert answer.status_code in (200, 400, 422), answer.text
    if answer.status_code == 200:
        question = json.loads(body)
        movies = serve.Answer.model_validate(answer.json()).recommendations
        ids = [movie.id for movie in movies]
        assert len(ids) == question.get("k", 10)
        assert not set(ids) & {*question["history"], *question.get("exclude", [])}
    else:
        assert isinstance(answer.json()["detail"], str)


def wait_for(client, **wanted):
    """Wait until `/health` says so."""
    for _ in range(600):
        health = client.get("/health").raise_for_status().json()
        if all(health[name] == value for name, value in wanted.items()):
            return health
        time.sleep(0.05)
    raise AssertionError(f"never {wanted}: {health}")


@pytest.mark.long
def test_another_version_is_taken_over_without_a_dropped_request(tmp_path):
    known = {}
    for seed in (1, 2, 1):
        name = write(tmp_path, **artefacts.parts(seed)).name
        known[name] = [vars(movie) for movie in Service.load(tmp_path).recommend([10, 20])]
    assert len(known) == 2
    wrong, answered, done = [], [], threading.Event()

    def keep_asking(url):
        with httpx2.Client(base_url=url, timeout=60) as client:
            while not done.is_set():
                answer = ask(client, history=[10, 20])
                found = answer.json()
                answered.append(found.get("artefact"))
                if (
                    answer.status_code != 200
                    or known[found["artefact"]] != found["recommendations"]
                ):
                    wrong.append(answer.text)

    with load.started(tmp_path, *QUICKLY) as running, httpx2.Client(base_url=running.url) as client:
        threads = [threading.Thread(target=keep_asking, args=(running.url,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for seed in (2, 1, 2, 1):
            name = write(tmp_path, **artefacts.parts(seed)).name
            wait_for(client, artefact=name)
        done.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert set(answered) == set(known)


@pytest.mark.long
def test_a_damaged_version_leaves_the_old_one_in_use_and_health_says_why(tmp_path):
    old = write(tmp_path, **artefacts.parts(1))
    with load.started(tmp_path, *QUICKLY) as running, httpx2.Client(base_url=running.url) as client:
        new = write(tmp_path / "elsewhere", **artefacts.parts(2))
        blob = bytearray((new / "encoder.onnx").read_bytes())
        blob[len(blob) // 2] ^= 1
        (new / "encoder.onnx").write_bytes(blob)
        new.rename(tmp_path / new.name)
        (tmp_path / "current").write_text(new.name)
        for _ in range(200):
            health = client.get("/health").json()
            if health["refused"]:
                break
            time.sleep(0.05)
        assert health["artefact"] == old.name
        assert "encoder.onnx is damaged" in health["refused"]
        assert ask(client, history=[10]).json()["artefact"] == old.name
        (tmp_path / "current").unlink()  # not even this stops it
        time.sleep(0.2)
        assert ask(client, history=[10]).json()["artefact"] == old.name
        write(tmp_path, **artefacts.parts(2))
        wait_for(client, artefact=new.name, refused=None)


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_writer_killed_at_any_moment_leaves_what_is_served(tmp_path):
    names = {write(tmp_path, **artefacts.parts(seed)).name for seed in (1, 2)}
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); import artefacts;"
        "from rectutor.artefact import write\n"
        "for turn in range(10**6): write(sys.argv[1], **artefacts.parts(1 + turn % 2)); print('.')"
    )
    with load.started(tmp_path, *QUICKLY) as running, httpx2.Client(base_url=running.url) as client:
        for delay in (0.0, 0.013, 0.031, 0.057):
            writer = subprocess.Popen(
                [sys.executable, "-uc", code, tmp_path, Path(__file__).parent],
                stdout=subprocess.PIPE,
            )
            assert writer.stdout.readline().strip() == b"."
            time.sleep(delay)
            writer.send_signal(signal.SIGKILL)
            writer.communicate()
            assert Service.load(tmp_path).id in names
            health = wait_for(client, artefact=artefact.current(tmp_path))
            assert ask(client, history=[10]).json()["artefact"] == health["artefact"]


# 100,000 in the nightly profile
@pytest.mark.long
def test_memory_stays(running):
    turns = 20 if PROFILE == "nightly" else 2
    asked = [
        {"history": [10, 20, 30]},
        {"history": []},
        {"history": [7]},
        {"history": [10], "k": 99},
    ]
    sent, held = 0, []
    for _ in range(turns + 1):
        # the last two are answered with 422
        found = load.measure(running.url, asked, clients=8, rate=10**9, seconds=turns * 250 / 10**9)
        sent += found.requests + found.failed
        held.append(running.memory())
    assert sent >= turns * (turns + 1) * 250
    assert held[-1] - held[0] < 3, held


def test_a_running_service_is_measured(running):
    asked = [{"history": [10, 20, 30]}]
    found = load.measure(running.url, asked, clients=3, seconds=0.3)
    assert found.requests > 3
    assert found.failed == 0
    assert 0 < found.p50 <= found.p99 <= found.slowest
    found = load.measure(running.url, asked, clients=2, rate=50, seconds=0.5)
    assert (found.requests, found.rate) == (25, 50)
    assert running.processor_seconds() > 0
    assert load.measure(running.url, [{"history": [7]}], seconds=0.1).requests == 0


@pytest.mark.parametrize(
    "named", [{"questions": []}, {"clients": 0}, {"rate": 0.0}, {"seconds": 0.0}]
)
def test_a_load_needs_something_to_do(named, running):
    with pytest.raises(ValueError, match=r"load.measure: .* must be above 0"):
        load.measure(running.url, **{"questions": [{"history": []}]} | named)


def test_milliseconds_are_those_of_the_median_call():
    assert 20 <= load.milliseconds(time.sleep, [0.0, 0.02, 0.02, 0.02, 0.3]) < 200


@pytest.mark.long
def test_the_load_generator_prints_what_it_found(served, capsys):
    assert load.main([str(served), "--seconds", "0.1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:6]] == ["1", "8", "64", "64"]


def test_what_was_refused_is_tried_again(tmp_path, monkeypatch):
    """The disk may have been to blame, not the version."""
    old = artefact.Service.load(write(tmp_path, **artefacts.parts(1)))
    new = write(tmp_path, **artefacts.parts(2))
    real, calls = artefact.Service.load, []

    def load_at_last(folder, search=None):
        calls.append(folder)
        if len(calls) < 3:
            raise OSError("a moment of trouble")
        return real(folder, search)

    async def watched():
        taken = serve._Taken(old)
        watching = asyncio.create_task(serve._watch(taken, tmp_path, None, 0.01, None))
        for _ in range(500):
            await asyncio.sleep(0.01)
            if taken.service.id == new.name:
                break
            assert taken.refused in (None, "OSError: a moment of trouble")
        watching.cancel()
        return taken

    monkeypatch.setattr(serve.Service, "load", load_at_last)
    taken = asyncio.run(watched())
    assert (taken.service.id, taken.refused, len(calls)) == (new.name, None, 3)


@pytest.mark.parametrize(
    ("option", "value"), [("--port", "99999"), ("--port", "-1"), ("--every", "0")]
)
def test_a_port_or_a_time_that_is_none_is_said(option, value, capsys):
    with pytest.raises(SystemExit) as ended:
        serve.main(["folder", f"{option}={value}"])
    assert ended.value.code == 2
    assert f"{value} is no " in capsys.readouterr().err


def test_two_full_lists_of_ids_as_long_as_a_uuid_are_read(client):
    ids = [f"{number:036d}" for number in range(5_000)]
    answer = ask(client, history=ids, exclude=ids)
    assert answer.status_code == 422
    assert "ids that are not in the catalogue" in answer.json()["detail"]
    assert len(ask(client, history=["9" * 200] * 20).content) < 1_500


def test_nothing_to_serve_is_said_in_one_line(tmp_path, capsys):
    assert serve.main([str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "there is no artefact yet; run `make book`" in said
    assert said.count("\n") == 1
    with pytest.raises(RuntimeError, match="the service did not start"):
        load.started(tmp_path).__enter__()


def test_a_port_in_use_is_said_in_one_line(served, running, capsys):
    assert serve.main([str(served), "--port", running.url.rsplit(":", 1)[1]]) == 1
    assert "rectutor.serve: " in capsys.readouterr().err
