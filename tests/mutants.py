"""Wrong versions of a source file, and whether the tests notice. The files themselves are never written to.

    python tests/mutants.py                      every small change of the files of the derivation, losses included
    python tests/mutants.py losses gradient      of these files alone
    python tests/mutants.py --json < changes     the changes of test_mutants.py

A mutant is the text of one file with one thing changed. PyTorch and pytest are imported once; each mutant then has
a forked process of its own, in which importing that file compiles the changed text instead.
"""

import argparse
import ast
import gc
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from importlib.machinery import SourceFileLoader
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = "objective", "preference", "margin_losses", "ratio_losses", "losses", "gradient", "logprob"
TESTS = {name: f"tests/test_{name.removeprefix('margin_')}.py" for name in (*FILES, "exact")}
TESTS["losses"] = TESTS["ratio_losses"]
# Imported once; never dpo_min, which each process has to itself. An optimizer imports the last, which takes a second.
SLOW = "numpy", "tiktoken", "torch", "torch.testing", "torch._dynamo"
LIMIT = 120  # seconds, after which SIGALRM ends a process
SURVIVED, FAILED, BROKE = 0, 1, 2  # pytest's exit codes: all passed, a test failed, the tests could not run
# Asserts are left as they are: only whether one failed is asked, and to rewrite a file's takes as long as a test. Nor
# is it asked what a failed test left open.
FLAGS = (
    "-xq -pno:cacheprovider -pno:unraisableexception --assert=plain --tb=native --hypothesis-profile=mutants".split()
)
QUICK = "--hypothesis-profile=quick"
PROFILE = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": hypothesis.HealthCheck}

# Survivors that no test can tell from the original, each with the reason.
TWO_AXES = "the tensor has two axes, of which 1 is the last"
SYMMETRIC = "the function does not depend on the order of its arguments"
FORWARD, BACKWARD = "logprob.TokenLogprobs.forward: ", "logprob.TokenLogprobs.backward: "
EQUIVALENT = {
    "margin_losses: (h - 1 / (2 * beta)) ** 2 → (1 / (2 * beta) - h) ** 2": "a square has no sign",
    "ratio_losses: NONE = 1e-09 → NONE = 2e-09": "so small an α is not told from 0 by either form",
    "ratio_losses.alpha_transform: alpha < NONE → alpha <= NONE": "so small an α is not told from 0 by either form",
    "ratio_losses.alpha_slopes: alpha_slope(a, alpha) → "
    "alpha_slope(alpha, a)": "the slope depends on the product of the two alone",
    "ratio_losses.alpha_slopes: alpha_slope(b, alpha) → "
    "alpha_slope(alpha, b)": "the slope depends on the product of the two alone",
    "ratio_losses: (a - 1 / (2 * beta)) ** 2 + (b + 1 / (2 * beta)) ** 2 → "
    "(1 / (2 * beta) - a) ** 2 + (b + 1 / (2 * beta)) ** 2": "a square has no sign",
    "ratio_losses: (bump(beta * a, beta) - bump(beta * (a - b), beta), bump(beta * (a - b), beta)) → "
    "(bump(beta * a, beta) - bump(beta * (b - a), beta), bump(beta * (a - b), beta))": "σ(x) σ(−x) is even",
    "ratio_losses: (bump(beta * a, beta) - bump(beta * (a - b), beta), bump(beta * (a - b), beta)) → "
    "(bump(beta * a, beta) - bump(beta * (a - b), beta), bump(beta * (b - a), beta))": "σ(x) σ(−x) is even",
    "ratio_losses.plackett_luce: where(contested, -logsigmoid(-ahead), 0.0).sum(dim=-1) → "
    "where(contested, -logsigmoid(-ahead), 0.0).sum(dim=1)": TWO_AXES,
    "ratio_losses.worse_answers: (..., None, :) → (:, None, ...)": TWO_AXES,
    "ratio_losses.worse_answers: (..., None, :) → (:, None, ...) #2": TWO_AXES,
    "ratio_losses.worse_answers: where(contested[..., None], -inf, 0.0) → "
    "where(contested[..., None], -inf, 1.0)": "what stands in the row of a rank without a rival is multiplied by 0",
    "ratio_losses.kto_slope: label.to(a.dtype) → label": "a whole number takes the type of what it is multiplied by",
    "ratio_losses.kto_slope: -weight * sign → -weight / sign": "1 and −1 are their own inverses",
    "ratio_losses.kto_slope: shift - a → a - shift": "σ(x) σ(−x) is even",
    "logprob.sequence_logprobs: torch.promote_types(logits.dtype, torch.float32) → "
    "torch.promote_types(torch.float32, logits.dtype)": "promotion is symmetric",
    "logprob.sequence_logprobs: torch.where(scored, token_logps, 0.0).sum(dim=-1) → "
    "torch.where(scored, token_logps, 0.0).sum(dim=1)": TWO_AXES,
    "logprob.sequence_logprobs: scored.sum(dim=-1) → scored.sum(dim=1)": TWO_AXES,
    "logprob.check_scoring: loss_mask.any(dim=-1) → loss_mask.any(dim=1)": TWO_AXES,
    "logprob.check_scoring: ('sum', 'mean') → ('mean', 'sum')": "being one of two does not depend on their order",
    "logprob.slice_width: max(1, elements) → max(elements, 1)": SYMMETRIC,
    "logprob.slice_width: max(1, slices) → max(slices, 1)": SYMMETRIC,
    "logprob.slice_width: max(1, width) → max(width, 1)": SYMMETRIC,
    "logprob.slice_width: width > 64 → width >= 64": "64 is a multiple of itself",
    FORWARD + "torch.promote_types(hidden.dtype, torch.float32) → "
    "torch.promote_types(torch.float32, hidden.dtype)": SYMMETRIC,
    FORWARD
    + "torch.logaddexp(log_sum, z.logsumexp(dim=-1)) → torch.logaddexp(z.logsumexp(dim=-1), log_sum)": SYMMETRIC,
    FORWARD + "hidden.new_full(targets.shape, -torch.inf, dtype=dtype) → "
    "hidden.new_full(targets.shape, -torch.inf)": "−∞ is exact in every type, and the first addition promotes it",
    FORWARD + "torch.zeros_like(log_sum) → log_sum": "every target lies in one slice, which overwrites what was there",
    FORWARD + "z.logsumexp(dim=-1) → z.logsumexp(dim=1)": TWO_AXES,
    FORWARD + "z.gather(1, place) → z.gather(-1, place)": TWO_AXES,
    FORWARD + "z.gather(1, place).squeeze(1) → z.gather(1, place).squeeze(-1)": TWO_AXES,
    BACKWARD + "d_z.scatter_add_(1, place, torch.where(inside, gradient, 0.0)[:, None]) → "
    "d_z.scatter_add_(-1, place, torch.where(inside, gradient, 0.0)[:, None])": TWO_AXES,
    BACKWARD + "zip(head.split(ctx.width), d_head.split(ctx.width), strict=True) → "
    "zip(head.split(ctx.width), d_head.split(ctx.width))": "two splits of one shape are equally long",
    BACKWARD + "strict=True → strict=False": "two splits of one shape are equally long",
    BACKWARD + "torch.empty_like(head) if trained else head → "
    "torch.empty_like(head) if True else head": "of a frozen head this takes memory that is never written",
    BACKWARD
    + "d_head if trained else None → d_head if True else None": "autograd drops the gradient of what needs none",
    BACKWARD + "d_hidden.to(hidden.dtype) → d_hidden": "autograd casts a gradient to the type of its tensor",
}


# ---- the engine ----


def source(stem):
    """The file that a stem names, in the package, as data/batch does, or beside it."""
    package = ROOT / "dpo_min" / f"{stem}.py"
    return package if package.exists() else ROOT / f"{stem}.py"


def replaced(stem, old, new):
    """The text of the file with `old`, which must stand in it exactly once, replaced by `new`."""
    text = source(stem).read_text(encoding="utf-8")
    if text.count(old) != 1:
        raise ValueError(f"{stem}.py: the text to replace must stand there once, found {text.count(old)} times: {old}")
    text = text.replace(old, new)
    compile(text, f"{stem}.py", "exec")
    return text


def warm_up():
    """Do once what every child would do: 0.1 s are left to it of 3."""
    os.chdir(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"  # a process with one thread is safe to fork
    for name in SLOW:
        importlib.import_module(name)
    sys.modules["torch.testing"].assert_close(1, 1)  # imports more than PyTorch did
    phases = hypothesis.Phase.explicit, hypothesis.Phase.generate  # what fails is not made smaller
    hypothesis.settings.register_profile("mutants", phases=phases, **PROFILE)
    hypothesis.settings.register_profile("quick", phases=phases, max_examples=10, **PROFILE)
    gc.collect()
    gc.freeze()  # no child looks through all of this for garbage


class FailedCalls:
    """A plugin that tells a test which failed from one whose fixtures did."""

    seen = False

    def pytest_runtest_logreport(self, report):
        self.seen |= report.when == "call" and report.failed


def pytest_on(stem, text, tests):
    """pytest's exit code for these tests where `text` stands in the place of the file; for a process of its own."""
    module = stem if source(stem).parent == ROOT else f"dpo_min.{stem.replace('/', '.')}"
    get_code = SourceFileLoader.get_code

    def changed(loader, name):
        return compile(text, loader.path, "exec") if name == module else get_code(loader, name)

    SourceFileLoader.get_code = changed
    calls = FailedCalls()
    code = pytest.main([*FLAGS, *tests], [calls])
    return BROKE if code == FAILED and not calls.seen else int(code)


def in_a_child(job, output):
    """Fork, and in the child run the job, its output in a file; returns the child's id."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code = 3
    try:
        signal.alarm(LIMIT)
        with open(output, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        code = pytest_on(*job)
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def run(jobs, workers):
    """Yield (index of the job, exit code, output) as processes end; a job is (stem, text, tests).

    The code is pytest's, except that `FAILED` is only for a test's own failure, and negative for a signal.
    """
    waiting, running = list(enumerate(jobs))[::-1], {}
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            while waiting and len(running) < workers:
                index, job = waiting.pop()
                output = Path(folder, str(index))
                running[in_a_child(job, output)] = index, output
            pid, status = os.wait()
            index, output = running.pop(pid)
            yield index, os.waitstatus_to_exitcode(status), output.read_text(encoding="utf-8", errors="replace")


# ---- every small change of a file ----

# What an operator becomes, and which word takes the place of another.
SWAPS = """Add Sub, Sub Add, Mult Div, Div Mult, Pow Mult, And Or, Or And, BitAnd BitOr, Eq NotEq, NotEq Eq, Lt LtE Gt,
    LtE Lt Gt, Gt GtE Lt, GtE Gt Lt, Is IsNot, IsNot Is, In NotIn, NotIn In""".split(",")
SWAPS = {getattr(ast, old): [getattr(ast, new)() for new in others] for old, *others in map(str.split, SWAPS)}
WORDS = {"exp": "log", "sigmoid": "logsigmoid", "log_softmax": "softmax", "sum": "mean", "any": "all"}
WORDS |= {new: old for old, new in WORDS.items()} | {"logsumexp": "sum"}


def places(parent, path=()):
    """(nodes above, field, position in it or None, node) of what may be changed: no annotation, docstring or error."""
    for field, value in ast.iter_fields(parent):
        for position, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            match node:
                case ast.Import() | ast.ImportFrom() | ast.JoinedStr() | ast.Expr(ast.Constant()):
                    continue
                case ast.AST() if field not in ("annotation", "ctx"):
                    yield (*path, parent), field, position, node
                    if not isinstance(node, ast.Raise):
                        yield from places(node, (*path, parent))


def changes(node, field):
    """What may stand in the place of a node."""
    if field in ("test", "ifs"):
        yield from (ast.Constant(True), ast.Constant(False))
    match node:
        case ast.Raise() | ast.Expr(ast.Call()):
            yield ast.Pass()
        case ast.BinOp(left, operator, right):
            yield from (left, right)
            yield from (ast.BinOp(left, other, right) for other in SWAPS.get(type(operator), ()))
            if isinstance(operator, ast.Sub | ast.Div | ast.Pow):
                yield ast.BinOp(right, operator, left)
        case ast.UnaryOp(ast.USub() | ast.Not(), operand):
            yield operand
        case ast.BoolOp(operator, values):
            yield from (ast.BoolOp(other, values) for other in SWAPS[type(operator)])
            yield from (ast.BoolOp(operator, values[:i] + values[i + 1 :]) for i in range(len(values)))
        case ast.Compare(left, operators, right):
            for i, operator in enumerate(operators):
                for other in SWAPS[type(operator)]:
                    yield ast.Compare(left, [*operators[:i], other, *operators[i + 1 :]], right)
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() | float() as value):
            yield from map(ast.Constant, (value + 1, 2 * value, -value or value))
        case ast.Constant(str() as value) if " " not in value:
            yield ast.Constant(WORDS.get(value, value + "?"))
        case ast.Slice(lower, upper):
            yield from (ast.Slice(None, upper), ast.Slice(lower, None))
        case ast.Tuple(elements):
            yield ast.Tuple(elements[::-1], node.ctx)
        case ast.Name(name) if name in WORDS:
            yield ast.Name(WORDS[name])
        case ast.Attribute(value, name) if name in WORDS:
            yield ast.Attribute(value, WORDS[name])
        case ast.Call(function, arguments, keywords):
            if isinstance(function, ast.Attribute) and ast.unparse(function.value) not in ("torch", "F"):
                yield function.value  # the method is not called
            if arguments:
                yield arguments[0]
            for i in range(len(arguments) - 1):
                swapped = [*arguments[:i], arguments[i + 1], arguments[i], *arguments[i + 2 :]]
                yield ast.Call(function, swapped, keywords)
            for i in range(len(keywords)):
                yield ast.Call(function, arguments, keywords[:i] + keywords[i + 1 :])


def mechanical(stem):
    """{description: (line, text)} of every small change of a file; a description names file, function and change."""
    tree = ast.parse(source(stem).read_text(encoding="utf-8"))
    original = ast.unparse(tree)
    mutants, texts = {}, {original, original.replace("--", "")}
    for above, field, position, node in list(places(tree)):
        names = [n.name for n in above if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        bodies = [n.body for n in above if isinstance(n, ast.Lambda)]  # shown whole, for the losses are alike
        shown = next((n for n in (*bodies, node, *above[::-1]) if 8 < len(ast.unparse(n)) < 200), node)
        before = ast.unparse(shown)
        for new in changes(node, field):
            put(above[-1], field, position, new)
            text = ast.unparse(tree).replace("--", "")  # −(−1) is known as 1 already
            after = ast.unparse(new if shown is node else shown).replace("--", "")
            put(above[-1], field, position, node)
            if text not in texts:
                texts.add(text)
                name = f"{'.'.join([stem, *names])}: {before} → {after}"
                same = sum(known.split(" #")[0] == name for known in mutants)
                mutants[name + f" #{same + 1}" * (same > 0)] = node.lineno, text
    return mutants


def put(parent, field, position, node):
    """Set a field of a node, or one element of it."""
    if position is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[position] = node


def examine(stem, workers):
    """(number of mutants, {description: line} of those that pass the file's own tests and then the others')."""
    mutants = mechanical(stem)
    own, others = [TESTS[stem]], [path for path in dict.fromkeys(TESTS.values()) if path != TESTS[stem]]
    left, explained = list(mutants), []
    for tests in ([QUICK, *own], own, others):  # the first ends most of them, and soon
        if not left:
            break
        jobs, passed = [(stem, mutants[name][1], tests) for name in left], []
        for count, (index, code, output) in enumerate(run(jobs, workers), 1):
            if code == SURVIVED:
                passed.append(left[index])
            elif code not in (FAILED, BROKE, -signal.SIGALRM):
                raise SystemExit(f"{output}\n{left[index]}: pytest ended with code {code}")
            if sys.stderr.isatty():
                print(f"\r{stem}: {count} of {len(jobs)} tried, {len(passed)} survive", end="", file=sys.stderr)
        print(f"\r{stem}: {len(passed)} of {len(jobs)} pass {' '.join(tests)}", file=sys.stderr)
        left = passed
        if tests is own:  # the other files' tests would not tell an explained one either, and take minutes to say so
            explained = [name for name in left if name in EQUIVALENT]
            left = [name for name in left if name not in EQUIVALENT]
    left = {*left, *explained}
    return len(mutants), {name: mutants[name][0] for name in mutants if name in left}


def report(stems, workers):
    """Print the table and the survivors; returns 1 where one of them, or an explanation, is out of place."""
    start, rows, found = time.time(), [], {}
    unchanged = FILES[0], source(FILES[0]).read_text(encoding="utf-8")
    for _, code, output in run([(*unchanged, [*TESTS.values()]), (*unchanged, [QUICK, *TESTS.values()])], workers):
        if code != SURVIVED:
            raise SystemExit(f"{output}\nthe tests do not pass on the files as they are")
    for stem in stems:
        count, left = examine(stem, workers)
        explained = left.keys() & EQUIVALENT.keys()
        found |= left
        rows.append((stem, count, count - len(left), len(explained), len(left) - len(explained)))
    stale = [name for name in EQUIVALENT if name.split(".")[0].split(":")[0] in stems and name not in found]
    print(f"{'file':12}{'mutants':>9}{'killed':>9}{'equivalent':>12}{'survived':>10}{'score':>9}")
    for stem, count, killed, explained, survived in [*rows, ("all", *map(sum, list(zip(*rows, strict=True))[1:]))]:
        print(f"{stem:12}{count:9}{killed:9}{explained:12}{survived:10}{killed / (count - explained):9.1%}")
    print(f"{time.time() - start:.0f} s")
    for name, line in found.items():
        print(f"{EQUIVALENT.get(name, 'SURVIVES')}\n    line {line}, {name}")
    for name in stale:
        print(f"EXPLAINED, BUT KILLED OR GONE\n    {name}")
    return int(bool(stale or found.keys() - EQUIVALENT.keys()))


def chosen(workers):
    """From [[file, old, new, tests], …] on stdin to [[code, output], …] on stdout; the code of a bad change is null."""
    results, jobs = {}, {}
    for i, (stem, old, new, tests) in enumerate(json.load(sys.stdin)):
        try:
            jobs[i] = stem, replaced(stem, old, new), tests
        except (SyntaxError, ValueError) as error:
            results[i] = None, str(error)
    for index, code, output in run(jobs.values(), workers):
        results[list(jobs)[index]] = code, output
    json.dump([results[i] for i in sorted(results)], sys.stdout)
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", metavar="file", help=f"of {', '.join(FILES)}; all without one")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="mutants tried at the same time")
    parser.add_argument("--json", action="store_true", help="changes on stdin, for test_mutants.py")
    options = parser.parse_args()
    if unknown := set(options.files) - set(FILES):
        parser.error(f"not one of {', '.join(FILES)}: {', '.join(unknown)}")
    warm_up()
    return chosen(options.workers) if options.json else report(options.files or FILES, options.workers)


if __name__ == "__main__":
    sys.exit(main())
