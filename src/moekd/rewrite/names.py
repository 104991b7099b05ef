"""Which names a variable may be given: identifiers that no language, library or convention has taken."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from moekd.syntax import parse

if TYPE_CHECKING:
    from moekd.syntax import LanguageName

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_RESERVED = re.compile(r"__|_[A-Z]|_+$|.*_t$", re.ASCII)  # C17 7.1.3; POSIX keeps *_t for types
_MACRO = re.compile(r"[A-Z][A-Z0-9_]+", re.ASCII)
_LONGEST = 63  # significant characters of an internal name, C17 5.2.4.1

_KEYWORDS = """
    alignas alignof and and_eq asm atomic_cancel atomic_commit atomic_noexcept auto bitand bitor bool break
    case catch char char8_t char16_t char32_t class compl concept const consteval constexpr constinit
    const_cast continue co_await co_return co_yield decltype default delete do double dynamic_cast else enum
    explicit export extern false far final float for friend goto huge if import inline int long module mutable
    namespace near new noexcept not not_eq nullptr operator or or_eq override private protected public
    reflexpr register reinterpret_cast requires restrict return short signed sizeof static static_assert
    static_cast struct switch synchronized template this thread_local throw true try typedef typeid typename
    typeof union unsigned using virtual void volatile wchar_t while xor xor_eq
"""

# Of the C standard library, POSIX and the C++ library, and macros in lower case that real code leans on.
_LIBRARY = """
    abort abs accept access acos alarm alloca asctime asin assert atan atan2 atexit atof atoi atol atoll
    basename bcmp bcopy begin bind bsearch bzero calloc ceil cerr chdir chmod chown cin clearerr clock close
    closedir cmp connect copy cos cosh cout creat ctime current difftime dirname div dup dup2 end endl environ
    errno execl execle execlp execv execve execvp exit exp fabs fclose fcntl fdopen feof ferror fflush fgetc
    fgetpos fgets fileno floor fmod fopen fork fprintf fputc fputs fread free freopen frexp fscanf fseek
    fsetpos fstat fsync ftell ftruncate fwrite get getc getchar getcwd getegid getenv geteuid getgid
    gethostbyname getline getopt getpid getppid gets getsockopt gettimeofday getuid gmtime hton htonl htons
    index inet_addr inet_ntoa inet_ntop inet_pton ioctl isalnum isalpha isatty iscntrl isdigit isgraph islower
    isprint ispunct isspace isupper isxdigit jiffies kfree kill kmalloc kzalloc labs ldexp ldiv likely linux
    link list listen localeconv localtime log log10 log2 longjmp lseek lstat main malloc map max memccpy
    memchr memcmp memcpy memmem memmove mempcpy memset min mkdir mkfifo mkstemp mktemp mktime mmap modf move
    mprotect munmap nanosleep ntohl ntohs null offsetof open opendir pair pause perror pipe poll pow pread
    printf printk putc putchar putenv puts pwrite qsort raise rand random read readdir readlink realloc recv
    recvfrom recvmsg remove rename rewind rindex rmdir round scanf select send sendmsg sendto set setbuf
    setenv setgid setjmp setlocale setsockopt setuid setvbuf shutdown sigaction signal signbit sin sinh sleep
    snprintf socket socketpair sort sprintf sqrt srand srandom sscanf stat std stderr stdin stdout stpcpy
    strcasecmp strcat strchr strcmp strcoll strcpy strcspn strdup strerror strftime string strlcat strlcpy
    strlen strncasecmp strncat strncmp strncpy strndup strnlen strpbrk strrchr strsep strspn strstr strtod
    strtok strtok_r strtol strtoll strtoul strtoull strxfrm swap symlink sync sysconf syslog system tan tanh
    time times tmpfile tmpnam tolower toupper truncate ttyname umask uname ungetc unix unlikely unlink
    unsetenv usleep utime va_arg va_copy va_end va_start vector vfprintf vprintf vsnprintf vsprintf wait
    waitpid write
"""

KEYWORDS = frozenset(_KEYWORDS.split())  # of C and C++
LIBRARY = frozenset(_LIBRARY.split())


def is_legal(name: str, language: LanguageName) -> bool:
    """Whether a local variable may be called `name` in any function.

    Refused are keywords of C and C++ both, library names, reserved ones, names in capitals (taken for macros), and
    what the parser does not read as an identifier. Old names are free to break these rules; new ones are not.
    """
    return (
        _IDENTIFIER.fullmatch(name) is not None
        and len(name) <= _LONGEST
        and name not in KEYWORDS
        and name not in LIBRARY
        and not _RESERVED.match(name)
        and not _MACRO.fullmatch(name)
        and _reads_as_identifier(name, language)
    )


def looks_like_macro(name: str) -> bool:
    return _MACRO.fullmatch(name) is not None


@cache
def _reads_as_identifier(name: str, language: LanguageName) -> bool:
    """The grammar has words of its own, such as `charptr_t` and `NULL`: ask it."""
    root = parse(f"int f(int {name}) {{ return {name}; }}".encode(), language).root_node
    node = root.descendant_for_byte_range(10, 10 + len(name))
    return not root.has_error and node is not None and node.type == "identifier"
