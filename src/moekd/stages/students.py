"""Steps of the student side: students of our systems and of published methods, group heads, hidden states."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moekd.experts.training import FLAWED_TEACHERS
from moekd.steps import Step
from moekd.students import published
from moekd.students.shapes import shape_named

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moekd.config import MoekdSettings
    from moekd.students.search import Kind

#: What each student learns from: the system whose targets it is given.
TARGETS = {
    "moe": "mixture",
    "single": "teacher",
    "hard": None,
    "ensemble": "ensemble",
    "random-partition": "mixture-random-partition",
    "pioneer": "teacher",
    "soda": "teacher",
}


def student_tokens_step(data: Step, shape: str) -> Step:
    return Step(
        "student-tokens",
        "moekd.students.tokenize:tokenize",
        needs={"data": data},
        variant={"student": shape},
        external="moekd.students.shapes:start_digests" if shape_named(shape).start else None,
    )


def student_step(
    settings: MoekdSettings,
    data: Step,
    tokens: Step,
    system: str,
    shape: str,
    seed: int,
    teachers: Mapping[str, Step],
) -> Step:
    needs = {"data": data, "tokens": tokens}
    target = TARGETS[system]
    if target is not None:
        needs["targets"] = teachers[target]
        if settings.distill.features:
            needs["features"] = _features(settings, target, seed, teachers)
    if system == "pioneer":
        needs["variants"] = Step(
            "variants",
            "moekd.distill.variants:score_variants",
            needs={"data": data, "teacher": teachers["teacher"]},
            variant={"seed": seed},
        )
    return Step(
        "student",
        "moekd.distill.student:train_student",
        reads=("student.training", *(("distill",) if target else ())),
        needs=needs,
        variant={"system": f"student-{system}", "student": shape, "seed": seed},
    )


def _features(settings: MoekdSettings, target: str, seed: int, teachers: Mapping[str, Step]) -> Step:
    """The hidden states of one teacher: of the single one, of a mixture's experts, or of the shared encoder."""
    teacher = teachers[target]
    needs = dict(teachers["teacher"].needs)
    reads: tuple[str, ...] = ("encoder.max_length",)
    if target == "teacher":
        needs["model"] = teacher
    elif settings.experts.mode == "shared":
        needs["model"] = teachers["router"]
        target = "shared-encoder"  # the same for every mixture
    else:
        scores = teacher.needs["scores"]
        needs |= {name: scores.needs[name] for name in ("partition", "experts")}
        needs |= {"scores": scores, "mixture": teacher}
        reads += ("mixture", "experts.training.bf16")
    return Step(
        "features",
        "moekd.distill.features:collect",
        reads=reads,
        needs=needs,
        variant={"system": target, "seed": seed},
    )


def group_head_step(student: Step, router: Step) -> Step:
    """The student's second answer: the CWE group, learned from the router of the same seed."""
    needs = {name: student.needs[name] for name in ("data", "tokens")}
    return Step(
        "group-head",
        "moekd.distill.group_head:train_group_head",
        needs={**needs, "student": student, "router": router, "partition": router.needs["partition"]},
        variant=student.variant,
    )


def published_steps(settings: MoekdSettings, data: Step, encoder: Step, teacher: Step, seed: int) -> list[Step]:
    """The students of published methods in the wanted ways and sizes, and the flawed teachers that some learn from."""
    wanted = settings.published
    renamed = _renamed(data, seed)
    teachers = {frozenset[str](): teacher} | {
        flaws: Step(
            "flawed-teacher",
            "moekd.experts.training:train_flawed_teacher",
            reads=("encoder", "teacher.training"),
            needs={"data": data, "encoder": encoder},
            variant={"system": system, "seed": seed},
        )
        for system, flaws in FLAWED_TEACHERS.items()
    }
    used: dict[str, Step] = {}
    students = []
    for method in wanted.systems:
        for size in wanted.sizes:
            student = published.student_named(method, size, settings)
            tokens = _published_tokens(data, student, renamed, seed)
            for way in published.ways_of(method, wanted.ways):
                system = published.system_named(method, way)
                one = teachers[frozenset(published.parts_of(system)[1] & published.TEACHER_DEFECTS)]
                needs = {"data": data, "tokens": tokens, "targets": one}
                if one is not teacher:
                    used[one.label] = one
                if published.METHODS[method].renamed:
                    needs["renamed-targets"] = _renamed_targets(data, renamed, one)
                students.append(
                    Step(
                        "student",
                        "moekd.distill.published:train_published",
                        reads=("published.epochs", "student.training.bf16"),
                        needs=needs,
                        variant={"system": system, "student": student, "seed": seed},
                    )
                )
    return [*used.values(), *students]


def candidates_step(
    settings: MoekdSettings, data: Step, search: Kind, budget_bytes: int, seed: int, teachers: Mapping[str, Step]
) -> Step:
    """The candidates of a search: ours learn from the mixture, those of a published method from the single teacher."""
    reads: tuple[str, ...] = ("search", "student.training.bf16")
    if search == "moekd":
        reads = ("search", "distill.temperature", "student.training")
        needs = {"data": data, "targets": teachers["mixture"]}
    else:
        needs = {"data": data, "targets": teachers["teacher"]}
        if published.METHODS[search].renamed:
            needs["renamed"] = _renamed(data, seed)
            needs["renamed-targets"] = _renamed_targets(data, needs["renamed"], teachers["teacher"])
    return Step(
        "candidates",
        "moekd.distill.candidates:train_candidates",
        reads=reads,
        needs=needs,
        variant={"search": search, "budget_bytes": budget_bytes, "seed": seed},
    )


def _renamed(data: Step, seed: int) -> Step:
    return Step("renamed", "moekd.distill.published:rename", needs={"data": data}, variant={"seed": seed})


def _renamed_targets(data: Step, renamed: Step, teacher: Step) -> Step:
    return Step(
        "renamed-targets",
        "moekd.distill.published:score_renamed",
        needs={"data": data, "renamed": renamed, "teacher": teacher},
        variant=teacher.variant,
    )


def _published_tokens(data: Step, student: str, renamed: Step, seed: int) -> Step:
    """A student's tokens: the same for every seed, but for a method that learns from renamed functions, too."""
    is_renamed = published.method_of(student).renamed
    return Step(
        "published-tokens",
        "moekd.students.published:tokenize_published",
        needs={"data": data} | ({"renamed": renamed} if is_renamed else {}),
        variant={"student": student} | ({"seed": seed} if is_renamed else {}),
        external="moekd.students.published:searched_digests" if student.endswith(published.SEARCHED) else None,
    )
