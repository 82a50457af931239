"""What Celery's page about canvases shows, each with how it ends here."""

TASKS = """
    import celery

    @app.task(name="test.total")
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @app.task(name="test.replaced", bind=True)
    def replaced(self, x: int, how: str = "task"):
        raise self.replace({
            "task": add.s(x, 1),
            "chain": add.s(x, 1) | mul.s(3),
            "group": celery.group(add.s(x, 1), add.s(x, 2)),
            "chord": celery.chord([add.s(x, 1), add.s(x, 2)], total.s()),
        }[how])

    @app.task(name="test.adds_to_chord", bind=True)
    def adds_to_chord(self):
        self.add_to_chord(add.s(1, 1))
"""

EXAMPLES: dict[str, tuple[str, object]] = {
    "Canvas: signature, s": (
        "signature('proj.tasks.add', args=(2, 2), app=app).delay().get(T), "
        "add.s(2, 2).apply_async().get(T), add.s(2, 2)()",
        [4, 4, 4],
    ),
    "Canvas: partials": ("add.s(4).delay(2).get(T), add.s(x=1).delay(y=2).get(T)", [6, 3]),
    "Canvas: si": ("add.apply_async((2, 2), link=add.si(5, 5)).get(T), add.si(2, 2).delay().get(T)", [4, 4]),
    "Canvas: set, clone": (
        "add.s(2, 2).set(queue='proj.tasks', countdown=0).delay().get(T), "
        "add.s(2).clone(args=(4,)).delay().get(T)",
        [4, 6],
    ),
    "Canvas: link, link_error, on_error of a signature": (
        "sig = add.s(1, 1)\nsig.link(mul.s(3))\nresult = sig.delay()\nresult.get(T)\n"
        "failure = fails.s().on_error(note.s('of a signature')).delay()\n"
        "until(lambda: result.children)[0].get(T), read('of a signature').startswith(failure.id)",
        [6, True],
    ),
    "Canvas: chain, |": (
        "result = (add.s(2, 2) | mul.s(8) | mul.s(10))()\n"
        "result.get(T), result.parent.get(T), result.parent.parent.get(T), "
        "chain(add.s(2, 2), mul.s(3))().get(T)",
        [320, 32, 4, 12],
    ),
    "Canvas: chain that fails": (
        "result = chain(fails.s(), mul.s(8)).apply_async(link_error=note.s('of a chain'))\n"
        "assert 'no bread' in read('of a chain')\nresult.get(T)",
        "LookupError: no bread",
    ),
    "Canvas: group": (
        "group(add.s(i, i) for i in range(3))().get(T), group(add.s(i) for i in range(3)).delay(10).get(T)",
        [[0, 2, 4], [10, 11, 12]],
    ),
    "Canvas: results of a group": (
        "good, bad = group(add.s(1, 1), add.s(2, 2))(), group(add.s(1, 1), fails.s())()\n"
        "good.join(T), good.successful(), good.completed_count(), good.waiting(), "
        "str(bad.get(T, propagate=False)), bad.failed(), ResultSet([add.delay(1, 1)]).get(T)",
        [[2, 4], True, 2, False, "[2, LookupError('no bread')]", True, [2]],
    ),
    "Canvas: save and restore of a group": (
        "result = group(add.s(1, 1), add.s(2, 2))()\nresult.save()\n"
        "GroupResult.restore(result.id, app=app).get(T)",
        [2, 4],
    ),
    "Canvas: chord": (
        "chord((add.s(i, i) for i in range(4)), total.s())().get(T), "
        "chord([add.s(1, 1), add.s(1, 2)], add.si(5, 5))().get(T), chord([], total.s())().get(T)",
        [12, 10, 0],
    ),
    "Canvas: chord that fails": (
        "chord([add.s(1, 1), fails.s()], total.s().on_error(note.s('of a chord')))()\n"
        "read('of a chord').partition(' ')[2]",
        "ChordError(\"LookupError('no bread')\")",
    ),
    "Canvas: nested canvases": (
        "(group(add.s(1, 1), add.s(2, 2)) | total.s())().get(T), "
        "(add.s(1, 1) | group(add.s(2), add.s(3)) | total.s() | mul.s(2))().get(T), "
        "(add.s(1, 1) | group(add.s(2), add.s(3)))().get(T), "
        "chord([chord([add.s(1, 1)], total.s()), add.s(3, 3) | mul.s(2)], total.s())().get(T)",
        [6, 18, [4, 5], 14],
    ),
    "Canvas: map, starmap": (
        "total.map([[1, 2], [3, 4]]).delay().get(T), add.starmap([(1, 2), (3, 4)]).delay().get(T), "
        "~add.starmap([(1, 1)])",
        [[3, 7], [3, 7], [2]],
    ),
    "Canvas: chunks": (
        "add.chunks(zip(range(4), range(4)), 2)().get(T), "
        "add.chunks(zip(range(4), range(4)), 2).group().skew(start=0, stop=1)().get(T)",
        [[[0, 2], [4, 6]], [[0, 2], [4, 6]]],
    ),
    "Canvas: replace": (
        "[replaced.delay(5, how).get(T) for how in ('task', 'chain', 'group', 'chord')], "
        "(replaced.s(5, 'chain') | mul.s(2))().get(T), "
        "chord([replaced.s(5, 'chord'), add.s(1, 1)], total.s())().get(T)",
        [[6, 18, [6, 7], 13], 36, 15],
    ),
    "Canvas: add_to_chord": (
        "chord([adds_to_chord.s()], total.s())().get(T)",
        "NotImplementedError: Backend does not support add_to_chord",
    ),
    "Canvas: stamps": (
        "class Visitor(StampingVisitor):\n"
        "    def on_signature(self, sig, **headers):\n"
        "        return {'mine': 'yes', 'stamped_headers': ['mine']}\n"
        "sig = group(asked.s('stamps'), asked.s('stamps'))\n"
        "sig.stamp(visitor=Visitor())\nsig().get(T)",
        [[{"mine": "yes"}], [{"mine": "yes"}]],
    ),
    "Canvas: parent, children, collect, graph, as_tuple": (
        "result = (add.s(2, 2) | mul.s(8))()\nresult.get(T)\n"
        "[value for _, value in result.parent.collect()], len(result.graph.adjacent), "
        "result_from_tuple(result.as_tuple(), app=app).get(T)",
        [[4, 32], 1, 32],
    ),
}
