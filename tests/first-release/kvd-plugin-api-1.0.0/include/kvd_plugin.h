/*
 * kvd_plugin.h: a storage engine for kvd in C, or in anything that can fill a C structure.
 *
 * An engine is a shared library with two symbols of plain data: a manifest, which the macro
 * KVD_PLUGIN writes, and a table of functions, `kvd_backend_v1`:
 *
 *     #include "kvd_plugin.h"
 *
 *     KVD_PLUGIN("mine", "1.0.0");
 *
 *     KVD_SYMBOL const kvd_backend kvd_backend_v1 = {
 *         .size = sizeof(kvd_backend),
 *         .caps = KVD_CAP_DURABLE,
 *         .open = mine_open, .free = mine_free, .mark = mine_mark, .get = mine_get,
 *         .scan = mine_scan, .write = mine_write, .sync = mine_sync, .replace = mine_replace,
 *     };
 *
 *     cc -O2 -shared -fPIC -I plugin-api/include -o libkvd_mine.so mine.c
 *     kvd plugin check ./libkvd_mine.so
 *     kvd --backend ./libkvd_mine.so ./node0
 *
 * plugins/journal/journal.c is a complete one. docs/plugins.md is the guide; what it says of the
 * contract holds here word for word.
 *
 * The contract. An engine is one map from bytes to bytes, ordered as memcmp orders (a prefix comes
 * first), and a mark that belongs to it: a number that never falls, and up to 64 KiB of bytes that
 * are the host's own. The engine stores the mark, returns it, and never reads it.
 *
 *   1. A write takes its batch and its mark together, or not at all: for readers, for views, and
 *      for whoever opens the engine after a crash.
 *   2. A write is visible when it has returned. Within a batch later changes see earlier ones.
 *   3. After a crash at any moment the state is exactly that after some write, with that write's
 *      mark, not older than the mark that sync last gave out.
 *   4. A view stays as it was when it was taken.
 *   5. What an engine cannot do it says as data: in `caps`, in its limits, and by leaving functions
 *      out.
 *
 * Threads. All calls block. write, sync, replace, compact, verify and close come one at a time; mark,
 * get, scan, view, property and all reads of views come from many threads at any time, also during
 * those, and each sees all of a write or nothing.
 *
 * Bytes that are lent, in either direction, live until the call that they were given to returns.
 * A callback is called from the thread that made the call, before the call returns, and never
 * calls back into the engine: an engine may hold a lock while it calls one.
 *
 * Nothing may leave a function but by return: no exception of C++, no longjmp. What the host can
 * see of a fault it contains, such as bytes of an absurd length, a value given twice, or a mark
 * that never came: the call fails as KVD_CORRUPTION, nothing enters the engine again, and the node
 * stops in order. What it cannot see, such as a pointer that leads nowhere, ends the process.
 *
 * Versions. This is interface 1. The table, and every structure that begins with `size`, may grow
 * at its end; `size` says what the other side knows. A library that was built with an older header
 * of interface 1 is loaded by every kvd that supports interface 1.
 */
#ifndef KVD_PLUGIN_H
#define KVD_PLUGIN_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The interface of this header, and its own version within it. */
#define KVD_API_VERSION 1
#define KVD_HEADER_VERSION "1.0.0"

/* Bytes that are lent. Where `len` is 0, `data` may be anything. */
typedef struct kvd_bytes {
    const uint8_t *data;
    size_t len;
} kvd_bytes;

/* What a call comes to. Unknown numbers are met as KVD_OTHER. */
typedef uint32_t kvd_status;

#define KVD_OK 0u
#define KVD_IO 1u             /* reading or writing files failed: the node stops, a restart goes on */
#define KVD_NO_SPACE 2u       /* the disk is full: as for KVD_IO */
#define KVD_CORRUPTION 3u     /* stored data is damaged: nothing enters the engine any more */
#define KVD_LOCKED 4u         /* from open: something else has the directory open */
#define KVD_INCOMPATIBLE 5u   /* from open: the directory has a format that is not the engine's */
#define KVD_INVALID_OPTION 6u /* from open: an option has a value that the engine does not take */
#define KVD_TOO_LARGE 7u      /* from write: above the engine's limits; nothing was written */
#define KVD_UNSUPPORTED 8u    /* not offered */
#define KVD_CLOSED 9u
#define KVD_OTHER 255u

/*
 * Where a call that fails leaves its message: a short fragment in lower case, without a full stop,
 * for the operator. At most `capacity` bytes with the NUL at the end. kvd_fail fills it.
 */
typedef struct kvd_error {
    char *message;
    size_t capacity;
} kvd_error;

/* Where a state stands in the host's history. The default, index 0 without bytes, says "nothing was
 * ever written". */
typedef struct kvd_mark {
    uint64_t index;
    kvd_bytes data;
} kvd_mark;

/* One change of a batch. A kind that is not known here is KVD_UNSUPPORTED, and nothing of the batch
 * is written. */
typedef struct kvd_op {
    uint32_t kind;
    kvd_bytes a;
    kvd_bytes b;
} kvd_op;

#define KVD_PUT 1u          /* sets the key `a` to the value `b`, whether it exists or not */
#define KVD_DELETE 2u       /* removes the key `a`; an absent one is no error */
#define KVD_DELETE_RANGE 3u /* removes all keys >= `a` and < `b`; an empty range is no error */

/* The keys >= `from`, and < `to` where `has_to` is not 0; from the last to the first where `reverse`
 * is not 0. An empty `from` is the start; a range whose end is not behind its start is empty. */
typedef struct kvd_range {
    kvd_bytes from;
    kvd_bytes to;
    uint8_t has_to;
    uint8_t reverse;
} kvd_range;

/* Callbacks of the host: call `give(context, ...)`. */

typedef struct kvd_value_out {
    void *context;
    void (*give)(void *context, kvd_bytes value);
} kvd_value_out;

/* `give` returns 0 to go on, anything else for enough: the scan then ends with KVD_OK. */
typedef struct kvd_entry_out {
    void *context;
    int (*give)(void *context, kvd_bytes key, kvd_bytes value);
} kvd_entry_out;

typedef struct kvd_mark_out {
    void *context;
    void (*give)(void *context, kvd_mark mark);
} kvd_mark_out;

/*
 * The entries that replace reads, in strictly ascending order of keys. `next` returns one of the
 * numbers below; with KVD_FEED_ENTRY it has set key and value, which live until it is called again.
 */
typedef struct kvd_feed {
    void *context;
    int (*next)(void *context, kvd_bytes *key, kvd_bytes *value);
} kvd_feed;

#define KVD_FEED_END 0
#define KVD_FEED_ENTRY 1
#define KVD_FEED_FAILED 2 /* the host could not read its source: return any error */

/* Options: what an operator sets by `--backend-opt name=value`. The host refuses unknown names and
 * values that are not of their kind before open is called. */
typedef struct kvd_option {
    const char *name;          /* lower-case letters, digits, - and _ */
    uint32_t kind;             /* KVD_OPTION_... */
    const char *default_value; /* in force when none is given, in the operator's notation */
    const char *help;          /* one sentence, with the unit */
} kvd_option;

#define KVD_OPTION_SIZE 1u     /* 1048576, 64MiB, 1GiB: a number of bytes */
#define KVD_OPTION_DURATION 2u /* 250ms, 5s, 2m: a number of milliseconds */
#define KVD_OPTION_BOOL 3u     /* yes, no, true, false: 1 or 0 */
#define KVD_OPTION_INT 4u      /* a whole number that is not negative */
#define KVD_OPTION_ENUM 5u     /* a word, which the engine checks */
#define KVD_OPTION_STRING 6u   /* any text */

/* An option as it is in force: every one of the table's has one. */
typedef struct kvd_option_value {
    const char *name;
    const char *text;
    uint64_t number; /* of sizes, durations, bools and ints */
} kvd_option_value;

/* The host. What `open` is given stays where it is until `free` returns. */
typedef struct kvd_host {
    size_t size;
    void *context;
    /* From any thread, at any time; levels: KVD_LOG_... */
    void (*log)(void *context, uint32_t level, const char *message);
    /* The most detailed level that the host wants to hear of; 0 is none. */
    uint32_t log_level;
} kvd_host;

#define KVD_LOG_ERROR 1u
#define KVD_LOG_WARN 2u
#define KVD_LOG_INFO 3u
#define KVD_LOG_DEBUG 4u
#define KVD_LOG_TRACE 5u

/* What open is given. */
typedef struct kvd_open {
    size_t size;
    const char *dir; /* the engine's own directory; it exists, and nothing else writes into it */
    const kvd_option_value *options;
    size_t options_len;
    const kvd_host *host;
} kvd_open;

/* What an engine can do beyond the minimum. */
#define KVD_CAP_DURABLE (UINT64_C(1) << 0)   /* sync makes writes survive the loss of power */
#define KVD_CAP_VIEW (UINT64_C(1) << 1)      /* views: the four functions of the table */
#define KVD_CAP_FAST_READ (UINT64_C(1) << 2) /* a get usually takes a few microseconds: kvd may call
                                                it on the threads that serve sockets */
#define KVD_CAP_FAST_DELETE_RANGE (UINT64_C(1) << 3) /* much cheaper than deleting each key */
#define KVD_CAP_COMPACT (UINT64_C(1) << 4)   /* compact */
#define KVD_CAP_VERIFY (UINT64_C(1) << 5)    /* verify checks more than that all can be read */

/* The table. `engine` is what open has left, `view` what view has left; neither is NULL. */
typedef struct kvd_backend {
    /* sizeof(kvd_backend) */
    size_t size;
    /* KVD_CAP_..., together */
    uint64_t caps;
    /* The largest things that it can store, in bytes: a key, a value, the sum of all keys and values
     * of one batch. 0 is no limit. */
    uint64_t key_bytes_max;
    uint64_t value_bytes_max;
    uint64_t batch_bytes_max;
    /* May be NULL where there are none. */
    const kvd_option *options;
    size_t options_len;

    /* Opens the engine in `cx->dir`, creating it where the directory is empty. Whatever fails, it
     * leaves nothing open. */
    kvd_status (*open)(const kvd_open *cx, void **engine, kvd_error *error);

    /* Lets go of everything, durable or not; once, after all its views were freed and no call is
     * under way. close was called before, or the host has given the engine up. */
    void (*free)(void *engine);

    /* Gives the mark of the state as it is now, once: after open, of what has survived. */
    kvd_status (*mark)(void *engine, const kvd_mark_out *out, kvd_error *error);

    /* Gives the value of `key`, once, or gives nothing where there is none; KVD_OK either way. */
    kvd_status (*get)(void *engine, kvd_bytes key, const kvd_value_out *out, kvd_error *error);

    /* Gives the entries of a range in their order, until its end or until `give` says enough. */
    kvd_status (*scan)(void *engine, const kvd_range *range, const kvd_entry_out *out,
                       kvd_error *error);

    /* Applies all of a batch together with `mark`, or nothing of it. Visible on return; it may be
     * lazy: a crash may lose it, as a whole and together with all later writes. mark->index is never
     * below that of the write before; the same mark again is allowed, and so is an empty batch. The
     * host writes nothing more after an error. */
    kvd_status (*write)(void *engine, const kvd_op *ops, size_t ops_len, const kvd_mark *mark,
                        kvd_error *error);

    /* Makes every write that returned before durable, on the disk and not only with the system, and
     * gives the mark of what is durable, once. Without KVD_CAP_DURABLE it gives the default mark.
     * The host never calls it again after an error. */
    kvd_status (*sync)(void *engine, const kvd_mark_out *out, kvd_error *error);

    /* Replaces the whole contents by those of `feed`, which is read to its end, with `mark`; durable
     * on return where the engine is. After a crash in the middle the engine opens with the old
     * contents, the new ones, or nothing and the default mark, never with a mixture. Views that were
     * taken before stay as they were. */
    kvd_status (*replace)(void *engine, const kvd_feed *feed, const kvd_mark *mark,
                          kvd_error *error);

    /* With KVD_CAP_VIEW all four, without it none is called. view leaves a read that stays as it is
     * and gives its mark, once; the others are get and scan of it, and its end. Views are held for
     * minutes, and may be freed after close. */
    kvd_status (*view)(void *engine, void **view, const kvd_mark_out *out, kvd_error *error);
    kvd_status (*view_get)(void *view, kvd_bytes key, const kvd_value_out *out, kvd_error *error);
    kvd_status (*view_scan)(void *view, const kvd_range *range, const kvd_entry_out *out,
                            kvd_error *error);
    void (*view_free)(void *view);

    /* From here on each may be NULL. */

    /* Gives the names of the properties: kvd.disk.bytes (what the engine takes on disk), kvd.keys
     * (how many keys there are), and others that begin with the engine's name. */
    kvd_status (*properties)(void *engine, const kvd_value_out *out, kvd_error *error);

    /* Gives the value of a property, as a text, once; nothing where there is none. */
    kvd_status (*property)(void *engine, const char *name, const kvd_value_out *out,
                           kvd_error *error);

    /* Gives unused space back, as far as it can while the engine is open; KVD_CAP_COMPACT. */
    kvd_status (*compact)(void *engine, kvd_error *error);

    /* Reads everything and checks whatever it can; KVD_CAP_VERIFY. */
    kvd_status (*verify)(void *engine, kvd_error *error);

    /* Makes everything durable and lets go of the files; at most once, and nothing but view_free and
     * free is called afterwards. Without it the host calls sync. */
    kvd_status (*close)(void *engine, kvd_error *error);
} kvd_backend;

/* The manifest: what `kvd plugin info` reads, also of a library that cannot be loaded. */
typedef struct kvd_manifest {
    char magic[8];
    uint32_t size;
    uint32_t api_version;
    uint64_t flags;
    const char *name;
    const char *version;
    const char *plugin_api;
    const char *compiler;
    const char *target;
} kvd_manifest;

#define KVD_MANIFEST_DEBUG (UINT64_C(1) << 0)   /* built without optimisation */
#define KVD_MANIFEST_C_TABLE (UINT64_C(1) << 1) /* there is a kvd_backend_v1 */

#ifdef __OPTIMIZE__
#define KVD_MANIFEST_FLAGS KVD_MANIFEST_C_TABLE
#else
#define KVD_MANIFEST_FLAGS (KVD_MANIFEST_C_TABLE | KVD_MANIFEST_DEBUG)
#endif

#ifdef __VERSION__
#define KVD_COMPILER "cc " __VERSION__
#else
#define KVD_COMPILER "cc"
#endif

#if defined(__x86_64__)
#define KVD_MACHINE "x86_64"
#elif defined(__aarch64__)
#define KVD_MACHINE "aarch64"
#else
#define KVD_MACHINE "another machine"
#endif

#if defined(__linux__)
#define KVD_TARGET KVD_MACHINE "-linux"
#elif defined(__APPLE__)
#define KVD_TARGET KVD_MACHINE "-darwin"
#else
#define KVD_TARGET KVD_MACHINE
#endif

#ifdef __cplusplus
#define KVD_SYMBOL extern "C" __attribute__((visibility("default")))
#else
#define KVD_SYMBOL __attribute__((visibility("default")))
#endif

extern __attribute__((visibility("default"))) const kvd_manifest KVD_PLUGIN_MANIFEST;

/* Writes the manifest of an engine: its name (lower-case letters, digits, - and _) and its version.
 * Once in a library. */
#define KVD_PLUGIN(name_text, version_text)                                                        \
    KVD_SYMBOL const kvd_manifest KVD_PLUGIN_MANIFEST = {                                          \
        "KVDPLUG",          sizeof(kvd_manifest), KVD_API_VERSION, KVD_MANIFEST_FLAGS, name_text,  \
        version_text,       KVD_HEADER_VERSION,   KVD_COMPILER,    KVD_TARGET}

/* The table of an engine; defined by its author. */
extern __attribute__((visibility("default"))) const kvd_backend kvd_backend_v1;

/* What an author would write anyway. */

#if defined(__GNUC__)
#define KVD_PRINTS(text_at, first) __attribute__((format(printf, text_at, first), unused))
#define KVD_MAY_BE_UNUSED __attribute__((unused))
#else
#define KVD_PRINTS(text_at, first)
#define KVD_MAY_BE_UNUSED
#endif

/* Leaves a message, as printf does, and returns `status`. */
KVD_PRINTS(3, 4)
static inline kvd_status kvd_fail(kvd_error *error, kvd_status status, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    vsnprintf(error->message, error->capacity, format, values);
    va_end(values);
    return status;
}

/* Logs a line, as printf does, where the host wants to hear of it. */
KVD_PRINTS(3, 4)
static inline void kvd_log(const kvd_host *host, uint32_t level, const char *format, ...)
{
    char message[512];
    va_list values;
    if (level > host->log_level)
        return;
    va_start(values, format);
    vsnprintf(message, sizeof(message), format, values);
    va_end(values);
    host->log(host->context, level, message);
}

/* The option of a name; NULL for one that the table does not have. */
KVD_MAY_BE_UNUSED
static inline const kvd_option_value *kvd_option_named(const kvd_open *cx, const char *name)
{
    size_t at;
    for (at = 0; at < cx->options_len; at++)
        if (strcmp(cx->options[at].name, name) == 0)
            return &cx->options[at];
    return NULL;
}

/* Orders keys: below 0, 0 or above 0. */
KVD_MAY_BE_UNUSED
static inline int kvd_compare(kvd_bytes a, kvd_bytes b)
{
    size_t common = a.len < b.len ? a.len : b.len;
    int order = common ? memcmp(a.data, b.data, common) : 0;
    return order ? order : (a.len > b.len) - (a.len < b.len);
}

#ifdef __cplusplus
}
#endif

#endif
