"""What the embedded data set is made of: scenes of C code, harmless statements, words and conventions.

Only data. `moekd.data.embedded` draws names, structure and filler around a scene and writes the function.

A name in braces is a role: `{len}` becomes some identifier such as `frame_len`, the same one at each place; digits only
tell roles of one kind apart (`{len2}`). Statements are one line each; blocks are made by the writer. `PRELUDE` declares
all that a function may refer to, so that each function compiles on its own.
"""

from __future__ import annotations

from dataclasses import dataclass

PRELUDE = """\
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>
#include <grp.h>
#include <arpa/inet.h>
#define MAX_ITEMS 32
#define MAX_SLOTS 32
#define NUM_ENTRIES 32
#define TABLE_SIZE 32
#define MAX_DEPTH 16
#define HEADER_SIZE 12
#define FIELDS(kind) struct kind { char name[64]; char *data; size_t len; size_t size; int count; \\
    int flags; int state; int fd; int refs; int values[32]; unsigned int id; unsigned int mask; \\
    uid_t owner; uint16_t width; uint32_t total; struct kind *child; \\
    pthread_mutex_t lock; FILE *file; }
FIELDS(session); FIELDS(packet); FIELDS(request); FIELDS(device); FIELDS(channel); FIELDS(record); FIELDS(stream);
FIELDS(worker);
struct counters { unsigned long calls, bytes, errors, hits; };
extern struct counters stats;
extern int verbose, debug_level, tracing;
extern const char *program;
extern const int table[32];
void log_debug(const char *, ...); void log_info(const char *, ...); void log_warn(const char *, ...);
void trace_event(int); void touch_clock(void); void update_meter(int); void emit(const void *); void emit_value(long);
void add_metric(const char *, long);
int db_exec(void *, const char *); int clean_word(const char *); int valid_text(const char *); int render(const char *);
void quote_word(char *, size_t, const char *); void escape_html(char *, size_t, const char *);
int send_page(int, const char *); int load_plugin(const char *); int drop_caps(void); int parse_config(const char *);
int has_permission(uid_t, int); int check_password(const char *, const char *); int delete_record(unsigned int);
int token_expired(const char *); void grant_access(unsigned int, int);
int checksum_ok(const void *, size_t); int signature_ok(const void *, size_t); int apply_update(const void *, size_t);
void seed_random(unsigned int); void random_bytes(void *, size_t);
int install_key(const void *);
void *find_entry(const char *); void free_entry(void *); void *get_buffer(size_t); void put_buffer(void *);
int is_busy(unsigned int); void list_add(void *);
void init_ring(void *);
int read_block(int, void *, size_t); int write_block(int, const void *, size_t); void reset_state(void *);
void enable_irq(int); void register_handler(int); void *run_worker(void *);
int copy_out(void *, const void *, size_t);
"""


@dataclass(frozen=True)
class Block:
    """A C statement with a body, such as an `if`."""

    head: str
    body: tuple[Node, ...]


#: A line of C, or a block of them.
Node = str | Block

#: Stands for the way in which the function gives up; the writer puts `return -1;`, `goto fail;` or the like.
REJECT = "<reject>"


@dataclass(frozen=True)
class Scene:
    """The part of a function that decides whether it is vulnerable, without that decision.

    Attributes:
        cwe: its weakness, None where a real data set would not say.
        params: what the function takes.
        locals: declarations, each with an initial value.
        setup: statements that come before the decisive ones.
        tail: statements that come after them.
    """

    cwe: str | None
    params: str
    locals: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    tail: tuple[str, ...] = ()


@dataclass(frozen=True)
class Guarded(Scene):
    """A dangerous statement and the check that makes it harmless."""

    bad: str = ""  # condition under which the dangerous statement must not run
    sink: str = ""
    slack: str = ""  # a condition like `bad` that lets the danger through; empty: none


@dataclass(frozen=True)
class Ordered(Scene):
    """Two steps that are safe in one order only."""

    first: Node = ""
    second: Node = ""
    needed: bool = True  # whether it is unsafe, too, to leave out the first step


@dataclass(frozen=True)
class Bracketed(Scene):
    """A region between two calls; `inside` must lie in it (a lock), or must not (raised privileges)."""

    enter: str = ""
    leave: str = ""
    step: str = ""
    inside: bool = True  # where `step` is safe


_TEXT_IN = "struct {kind} *{obj}, const char *{src}"
_OBJ = "struct {kind} *{obj}"

#: By CWE group (methods.md 6.3 and appendix B), the ten names of the paper.
SCENES: dict[str, tuple[Scene, ...]] = {
    "CWE-664": (
        Guarded(
            "CWE-787",
            "const char *{src}, size_t {len}",
            locals=("char {buf}[{size}];",),
            bad="{len} > sizeof({buf})",
            sink="memcpy({buf}, {src}, {len});",
            slack="{len} > sizeof({src})",
            tail=("emit({buf});",),
        ),
        Guarded(
            "CWE-125",
            "struct {kind} *{obj}, unsigned int {idx}",
            locals=("int {value} = 0;",),
            bad="{idx} >= {MAX}",
            sink="{value} = {obj}->values[{idx}];",
            slack="{idx} > {MAX}",
            tail=("emit_value({value});",),
        ),
        Guarded(
            "CWE-119",
            _TEXT_IN,
            bad="strlen({src}) >= sizeof({obj}->name)",
            sink="strcpy({obj}->name, {src});",
        ),
        Ordered(
            "CWE-416",
            "struct {kind} *{obj}, char *{out}",
            first="copy_out({out}, {obj}->data, {obj}->len);",
            second="free_entry({obj});",
            needed=False,
        ),
    ),
    "CWE-707": (
        Guarded(
            "CWE-78",
            "const char *{arg}",
            locals=("char {cmd}[{size}];",),
            setup=("snprintf({cmd}, sizeof({cmd}), {command}, {arg});",),
            bad="!clean_word({arg})",
            sink="system({cmd});",
        ),
        Guarded(
            "CWE-89",
            "void *{db}, const char *{user}",
            locals=("char {query}[{size}];",),
            setup=("snprintf({query}, sizeof({query}), {select}, {user});",),
            bad="strchr({user}, '\\'') != NULL",
            sink="db_exec({db}, {query});",
        ),
        Guarded(
            "CWE-20",
            "const char *{src}, int {fd}",
            bad="!valid_text({src})",
            sink="render({src});",
        ),
        Ordered(
            "CWE-79",
            "int {fd}, const char *{src}",
            locals=("char {page}[{size}];",),
            first="escape_html({page}, sizeof({page}), {src});",
            second="send_page({fd}, {page});",
        ),
        Ordered(
            "CWE-78",
            "char *{arg}, size_t {len}",
            first="quote_word({arg}, {len}, {arg});",
            second='popen({arg}, "r");',
        ),
    ),
    "CWE-399": (
        Ordered(
            "CWE-399",
            "struct {kind} *{obj}, const char *{path}",
            first="fclose({obj}->file);",
            second='{obj}->file = fopen({path}, "r");',
        ),
        Ordered(
            "CWE-399",
            "struct {kind} *{obj}, size_t {len}",
            first="free({obj}->data);",
            second="{obj}->data = malloc({len});",
        ),
        Ordered(
            "CWE-399",
            "struct {kind} *{obj}, const char *{path}",
            first="close({obj}->fd);",
            second="{obj}->fd = open({path}, O_RDONLY);",
        ),
        Ordered(
            "CWE-399",
            "struct {kind} *{obj}, size_t {len}",
            first="put_buffer({obj}->data);",
            second="{obj}->data = get_buffer({len});",
        ),
    ),
    "CWE-264": (
        Ordered("CWE-264", "gid_t {gid}", first="setgroups(0, NULL);", second="setgid({gid});"),
        Ordered(
            "CWE-264",
            "uid_t {uid}, const char *{path}",
            first="setuid({uid});",
            second="execl({path}, {path}, (char *)NULL);",
        ),
        Ordered("CWE-264", "const char *{path}", first="drop_caps();", second="load_plugin({path});"),
        Ordered(
            "CWE-264",
            "const char *{path}",
            locals=("int {fd} = -1;",),
            first="umask(077);",
            second="{fd} = creat({path}, 0666);",
            tail=("emit_value({fd});",),
        ),
        Bracketed(
            "CWE-264",
            "uid_t {uid}, const char *{path}",
            enter="seteuid(0);",
            leave="seteuid({uid});",
            step="parse_config({path});",
            inside=False,
        ),
    ),
    "CWE-284": (
        Guarded(
            "CWE-862",
            "uid_t {uid}, unsigned int {id}",
            bad="!has_permission({uid}, {num})",
            sink="delete_record({id});",
        ),
        Guarded(
            "CWE-287",
            "struct {kind} *{obj}, const char *{user}, const char *{pass}",
            bad="!check_password({user}, {pass})",
            sink="grant_access({obj}->id, {num});",
        ),
        Guarded(
            "CWE-639",
            "struct {kind} *{obj}, uid_t {uid}",
            bad="{obj}->owner != {uid}",
            sink="delete_record({obj}->id);",
        ),
        Guarded(
            "CWE-284",
            "struct {kind} *{obj}, const char *{token}",
            bad="token_expired({token})",
            sink="grant_access({obj}->id, {num});",
        ),
    ),
    "CWE-682": (
        Guarded(
            "CWE-190",
            "struct {kind} *{obj}, size_t {count}",
            bad="{count} > SIZE_MAX / sizeof(long)",
            sink="{obj}->data = malloc({count} * sizeof(long));",
        ),
        Guarded(
            "CWE-369",
            "long {sum}, long {div}",
            locals=("long {avg} = 0;",),
            bad="{div} == 0",
            sink="{avg} = {sum} / {div};",
            tail=("emit_value({avg});",),
        ),
        Guarded(
            "CWE-191",
            "struct {kind} *{obj}, size_t {len}",
            locals=("size_t {rest} = 0;",),
            bad="{len} < HEADER_SIZE",
            sink="{rest} = {len} - HEADER_SIZE;",
            slack="{len} > HEADER_SIZE",
            tail=("emit_value((long){rest});",),
        ),
        Ordered(
            "CWE-131",
            "struct {kind} *{obj}, size_t {len}",
            first="{len} += sizeof(long);",
            second="{obj}->data = calloc(1, {len});",
            needed=False,
            tail=("{obj}->size = {len};",),
        ),
    ),
    "CWE-691": (
        Bracketed(
            "CWE-362",
            _OBJ,
            enter="pthread_mutex_lock(&{obj}->lock);",
            leave="pthread_mutex_unlock(&{obj}->lock);",
            step="{obj}->refs++;",
        ),
        Bracketed(
            "CWE-362",
            "struct {kind} *{obj}, struct {kind} *{item}",
            enter="pthread_mutex_lock(&{obj}->lock);",
            leave="pthread_mutex_unlock(&{obj}->lock);",
            step="list_add({item});",
        ),
        Ordered(
            "CWE-362",
            "struct {kind} *{obj}, pthread_t *{thread}",
            first="init_ring({obj});",
            second="pthread_create({thread}, NULL, run_worker, {obj});",
        ),
        Guarded(
            "CWE-674",
            "struct {kind} *{obj}, int {depth}",
            bad="{depth} > MAX_DEPTH",
            sink="{self}({obj}->child, {depth} + 1);",
        ),
    ),
    "CWE-189": (
        Guarded(
            "CWE-189",
            "char *{dst}, const char *{src}, int {count}",
            bad="{count} < 0",
            sink="memmove({dst}, {src}, (size_t){count});",
        ),
        Guarded(
            "CWE-189",
            "struct {kind} *{obj}, size_t {len}",
            bad="{len} > UINT16_MAX",
            sink="{obj}->width = (uint16_t){len};",
        ),
        Guarded(
            "CWE-189",
            "struct {kind} *{obj}, unsigned int {bits}",
            bad="{bits} >= 32",
            sink="{obj}->mask = 1u << {bits};",
            slack="{bits} > 32",
        ),
        Guarded(
            "CWE-189",
            "struct {kind} *{obj}, long {value}",
            bad="{value} > INT_MAX || {value} < INT_MIN",
            sink="{obj}->count = (int){value};",
        ),
    ),
    "unknown": (
        Ordered(
            None,
            "int {fd}, unsigned int {id}",
            locals=("struct {kind} {rec};",),
            first="memset(&{rec}, 0, sizeof({rec}));",
            second="write_block({fd}, &{rec}, sizeof({rec}));",
        ),
        Guarded(
            None,
            "const void *{image}, size_t {len}",
            bad="!checksum_ok({image}, {len})",
            sink="apply_update({image}, {len});",
        ),
        Ordered(
            None,
            "struct {kind} *{obj}, uint32_t {word}",
            first="{word} = ntohl({word});",
            second="{obj}->total = {word};",
        ),
        Guarded(
            None,
            _OBJ,
            bad="is_busy({obj}->id)",
            sink="reset_state({obj});",
        ),
        Ordered(None, "struct {kind} *{obj}, int {irq}", first="register_handler({irq});", second="enable_irq({irq});"),
    ),
    "other": (
        Guarded(
            "CWE-476",
            "const char *{key}",
            locals=("struct {kind} *{obj} = find_entry({key});",),
            bad="{obj} == NULL",
            sink="{obj}->state = {num};",
        ),
        Guarded(
            "CWE-476",
            "struct {kind} *{obj}, const char *{key}",
            bad="{obj}->child == NULL",
            sink="{obj}->child->flags |= {num};",
        ),
        Guarded(
            "CWE-252",
            "int {fd}, void *{out}, size_t {len}",
            bad="read_block({fd}, {out}, {len}) < 0",
            sink="emit({out});",
        ),
        Guarded(
            "CWE-347",
            "const void *{image}, size_t {len}",
            bad="!signature_ok({image}, {len})",
            sink="install_key({image});",
        ),
        Ordered(
            "CWE-335",
            "unsigned int {seed}, unsigned char *{out}, size_t {len}",
            first="seed_random({seed});",
            second="random_bytes({out}, {len});",
        ),
    ),
}

#: Harmless statements: declarations they need, and the lines.
FILLERS: tuple[tuple[tuple[str, ...], tuple[Node, ...]], ...] = (
    ((), ("stats.calls++;",)),
    ((), ("stats.hits += {num};",)),
    ((), ("trace_event({num});",)),
    ((), ("log_debug({text});",)),
    ((), ("touch_clock();",)),
    ((), ("update_meter({num});",)),
    ((), ("add_metric({text}, {num});",)),
    ((), (Block("if (tracing)", ("trace_event({num});",)),)),
    (("int {step} = {num};",), ("{step} = {step} * {num} + 1;", "update_meter({step});")),
    (("unsigned int {hash} = {num};",), ("{hash} ^= {hash} >> 3;", "trace_event((int){hash});")),
    (
        ("int {i};", "long {sum} = 0;"),
        (
            Block("for ({i} = 0; {i} < {num}; {i}++)", ("{sum} += table[{i} % 32];",)),
            "add_metric({text}, {sum});",
        ),
    ),
    (
        ("int {mode} = debug_level;",),
        (Block("while ({mode} > {num})", ("{mode} -= 2;",)), "update_meter({mode});"),
    ),
    (
        ("const char *{label} = {text};",),
        (Block("if (debug_level > {num})", ("{label} = {text};",)), "log_info({label});"),
    ),
)

#: Harmless conditions, for decoy checks.
ASIDES = (
    "verbose",
    "debug_level > {num}",
    "tracing == {num}",
    "stats.errors > {num}",
    "stats.calls < {num}",
    "program == NULL",
    "!verbose",
    "stats.bytes >= {num}",
)

#: One harmless line, used to keep a block from being empty.
NOTES = (
    "stats.errors++;",
    "log_warn({text});",
    "log_info({text});",
    "trace_event({num});",
    "log_debug({text}, {num});",
    "add_metric({text}, 1);",
    "update_meter({num});",
)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


#: How a function answers: return type, giving up, and the last statement. `goto` is drawn by the writer.
ANSWERS = (
    ("int", "return -1;", "return 0;"),
    ("int", "return -EINVAL;", "return 0;"),
    ("int", "return 1;", "return 0;"),
    ("bool", "return false;", "return true;"),
    ("long", "return -1;", "return 0;"),
    ("void", "return;", ""),
)

VERBS = _words(
    "apply build check copy decode fetch fill flush handle merge parse poll push reload reset route scan "
    "store sync update"
)
NOUNS = _words(
    "audio block cache client config event field font frame group header image input job label layer map menu "
    "message mount object option page panel peer pixel plan queue report rule scene sector server shape slot "
    "table task tile timer track user voice window zone"
)
KINDS = ("session", "packet", "request", "device", "channel", "record", "stream", "worker")

#: Names of a role; roles that are missing here use their own name.
ROLES: dict[str, tuple[str, ...]] = {
    "buf": ("buf", "buffer", "tmp", "scratch"),
    "src": ("src", "text", "input", "str"),
    "dst": ("dst", "dest", "out", "target"),
    "out": ("out", "dst", "result"),
    "len": ("len", "size", "length", "nbytes"),
    "count": ("count", "num", "n", "total"),
    "idx": ("idx", "index", "pos", "i"),
    "value": ("value", "val", "v"),
    "obj": ("obj", "ctx", "self", "node", "entry", "s", "p"),
    "item": ("item", "elem", "cur"),
    "path": ("path", "file_name", "filename", "fname"),
    "fd": ("fd", "sock", "handle"),
    "user": ("user", "login", "name"),
    "pass": ("pass", "password", "secret"),
    "arg": ("arg", "word", "param"),
    "cmd": ("cmd", "command", "line"),
    "query": ("query", "sql", "stmt"),
    "image": ("image", "blob", "payload"),
    "i": ("i", "j", "k", "n"),
    "key": ("key", "id", "name"),
    "div": ("div", "divisor", "parts"),
    "sum": ("sum", "acc", "amount"),
    "rec": ("rec", "reply", "msg"),
    "MAX": ("MAX_ITEMS", "MAX_SLOTS", "NUM_ENTRIES", "TABLE_SIZE"),
    "kind": KINDS,
}
COMMANDS = ("tar -xf %s", "ls -l %s", "convert %s", "gzip %s", "ping -c 1 %s", "mount %s", "chown root %s")
SELECTS = (
    "SELECT id FROM users WHERE name = '%s'",
    "DELETE FROM jobs WHERE owner = '%s'",
    "SELECT * FROM log WHERE tag = '%s'",
)
PROJECTS = _words(
    "amberfs brookd cedarmq dunelib elmproxy fjordnet gladedb heronos islemail juniperx kiteplay larkshell "
    "mossimage novacrypt oakprint pinevm quartzui reedftp slatedns tarnlog"
)
FAMILIES = ("storage", "network", "desktop", "system", "service")
