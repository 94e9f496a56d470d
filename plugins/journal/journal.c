/*
 * journal: a storage engine for kvd in C, as an example of kvd_plugin.h.
 *
 * All entries are in memory, in a tree that is never changed: a write makes new nodes on the way to
 * what it changes and shares the rest, so that a view is the root of its moment. On disk is a file
 * of records, one for each write, each with its length and its checksum. sync makes the records
 * durable; opening reads them again, up to the first that is not whole. When the file has become
 * much longer than what it says, sync writes it anew, beside the old one, whose place it takes.
 *
 *     cc -O2 -shared -fPIC -pthread -I plugin-api/include \
 *         -o target/libkvd_journal.so plugins/journal/journal.c
 */

#define _GNU_SOURCE

#include "kvd_plugin.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

KVD_PLUGIN_ABOUT("journal", "1.0.0", "an example in C: all in memory, with a journal on disk");

/* ---- The tree: a treap of nodes that nobody changes who is not alone with them. ---- */

typedef struct item {
    uint64_t held;
    size_t key_len, value_len;
    uint8_t bytes[]; /* the key, then the value */
} item;

typedef struct node {
    uint64_t held;
    uint64_t priority;
    item *item;
    struct node *left, *right;
} node;

/* Memory that is missing cannot be reported from the middle of a change: the process ends, and the
 * node starts again from what is durable. */
static void *memory(size_t bytes)
{
    void *at = malloc(bytes ? bytes : 1);
    if (!at)
        abort();
    return at;
}

static void copy(uint8_t *to, kvd_bytes from)
{
    if (from.len)
        memcpy(to, from.data, from.len);
}

static kvd_bytes key_of(const node *n)
{
    return (kvd_bytes){n->item->bytes, n->item->key_len};
}

static kvd_bytes value_of(const node *n)
{
    return (kvd_bytes){n->item->bytes + n->item->key_len, n->item->value_len};
}

static void take(uint64_t *held)
{
    __atomic_fetch_add(held, 1, __ATOMIC_RELAXED);
}

/* Returns whether it was the last. */
static int let_go(uint64_t *held)
{
    return __atomic_sub_fetch(held, 1, __ATOMIC_ACQ_REL) == 0;
}

static node *hold(node *n)
{
    if (n)
        take(&n->held);
    return n;
}

static void drop(node *n)
{
    while (n && let_go(&n->held)) {
        node *right = n->right;
        drop(n->left);
        if (let_go(&n->item->held))
            free(n->item);
        free(n);
        n = right;
    }
}

/* A new node with an item that is held for it. */
static node *made(item *of, uint64_t priority)
{
    node *n = memory(sizeof(node));
    *n = (node){1, priority, of, NULL, NULL};
    return n;
}

/* Takes a node apart: itself, without children, and the children. The node is another one where
 * somebody else can see it. */
static node *apart(node *n, node **left, node **right)
{
    node *own = n;
    if (__atomic_load_n(&n->held, __ATOMIC_ACQUIRE) == 1) {
        *left = n->left;
        *right = n->right;
        n->left = n->right = NULL;
    } else {
        take(&n->item->held);
        own = made(n->item, n->priority);
        *left = hold(n->left);
        *right = hold(n->right);
        drop(n);
    }
    return own;
}

/* Splits a tree into the keys below `key` and the others. */
static void split(node *n, kvd_bytes key, node **below, node **rest)
{
    node *left, *right, *part;
    if (!n) {
        *below = *rest = NULL;
        return;
    }
    n = apart(n, &left, &right);
    if (kvd_compare(key_of(n), key) < 0) {
        split(right, key, &part, rest);
        n->left = left;
        n->right = part;
        *below = n;
    } else {
        split(left, key, below, &part);
        n->left = part;
        n->right = right;
        *rest = n;
    }
}

/* One tree of two, of which all keys of the first come before all of the second. */
static node *joined(node *a, node *b)
{
    node *left, *right;
    if (!a || !b)
        return a ? a : b;
    if (a->priority > b->priority) {
        a = apart(a, &left, &right);
        a->left = left;
        a->right = joined(right, b);
        return a;
    }
    b = apart(b, &left, &right);
    b->left = joined(a, left);
    b->right = right;
    return b;
}

static const node *found(const node *n, kvd_bytes key)
{
    while (n) {
        int order = kvd_compare(key, key_of(n));
        if (order == 0)
            return n;
        n = order < 0 ? n->left : n->right;
    }
    return NULL;
}

static kvd_status visit(const node *n, const kvd_range *range, const kvd_entry_out *out)
{
    /* The way down, of what comes after its left (or right) side. Priorities are as good as random,
     * so that no tree that fits into memory is as deep. */
    const node *way[512];
    size_t depth = 0;
    if (range->has_to && kvd_compare(range->from, range->to) >= 0)
        return KVD_OK;
    for (;;) {
        while (n) {
            int is_before = range->reverse ? range->has_to && kvd_compare(key_of(n), range->to) >= 0
                                           : kvd_compare(key_of(n), range->from) < 0;
            if (!is_before) {
                if (depth == sizeof(way) / sizeof(way[0]))
                    abort();
                way[depth++] = n;
            }
            n = is_before == (range->reverse != 0) ? n->left : n->right;
        }
        if (!depth)
            return KVD_OK;
        n = way[--depth];
        if (range->reverse ? kvd_compare(key_of(n), range->from) < 0
                           : range->has_to && kvd_compare(key_of(n), range->to) >= 0)
            return KVD_OK;
        if (out->give(out->context, key_of(n), value_of(n)))
            return KVD_OK;
        n = range->reverse ? n->left : n->right;
    }
}

/* ---- A state: a tree, what it amounts to, and its mark. ---- */

typedef struct state {
    node *root;
    uint64_t keys, bytes;
    uint64_t index;
    uint8_t *data;
    size_t data_len;
} state;

static kvd_mark mark_of(const state *s)
{
    return (kvd_mark){s->index, {s->data, s->data_len}};
}

static void set_mark(state *s, kvd_mark mark)
{
    uint8_t *data = memory(mark.data.len);
    copy(data, mark.data);
    free(s->data);
    s->index = mark.index;
    s->data = data;
    s->data_len = mark.data.len;
}

static void end(state *s)
{
    drop(s->root);
    free(s->data);
    *s = (state){0};
}

/* What has been taken is counted out. */
static void count_out(state *s, const node *n)
{
    for (; n; n = n->right) {
        count_out(s, n->left);
        s->keys--;
        s->bytes -= n->item->key_len + n->item->value_len;
    }
}

static void delete_range(state *s, kvd_bytes from, kvd_bytes to)
{
    node *before, *middle, *rest;
    if (kvd_compare(from, to) >= 0)
        return;
    split(s->root, from, &before, &middle);
    split(middle, to, &middle, &rest);
    count_out(s, middle);
    drop(middle);
    s->root = joined(before, rest);
}

static void delete_one(state *s, kvd_bytes key)
{
    /* The key behind it is the same with a zero at its end. */
    uint8_t *room = memory(key.len + 1);
    copy(room, key);
    room[key.len] = 0;
    delete_range(s, key, (kvd_bytes){room, key.len + 1});
    free(room);
}

static void put(state *s, kvd_bytes key, kvd_bytes value)
{
    static uint64_t turn;
    node *before, *rest;
    uint64_t x = __atomic_add_fetch(&turn, UINT64_C(0x9e3779b97f4a7c15), __ATOMIC_RELAXED);
    item *of = memory(sizeof(item) + key.len + value.len);
    of->held = 1;
    of->key_len = key.len;
    of->value_len = value.len;
    copy(of->bytes, key);
    copy(of->bytes + key.len, value);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    delete_one(s, key);
    split(s->root, key, &before, &rest);
    s->root = joined(joined(before, made(of, x ^ x >> 31)), rest);
    s->keys++;
    s->bytes += key.len + value.len;
}

/* Returns whether the kind is known. */
static int change(state *s, uint32_t kind, kvd_bytes a, kvd_bytes b)
{
    switch (kind) {
    case KVD_PUT:
        put(s, a, b);
        return 1;
    case KVD_DELETE:
        delete_one(s, a);
        return 1;
    case KVD_DELETE_RANGE:
        delete_range(s, a, b);
        return 1;
    default:
        return 0;
    }
}

/* ---- Records: checksum, length, and as many bytes: the mark, then changes. ---- */

static const char HEADER[16] = "kvd journal 1\n";

#define RECORD_HEAD 16u

typedef struct buffer {
    uint8_t *bytes;
    size_t len, room;
} buffer;

static void add(buffer *to, const void *bytes, size_t len)
{
    if (to->len + len > to->room) {
        to->room = 2 * (to->len + len);
        to->bytes = realloc(to->bytes, to->room);
        if (!to->bytes)
            abort();
    }
    if (len)
        memcpy(to->bytes + to->len, bytes, len);
    to->len += len;
}

static void add_number(buffer *to, uint64_t number)
{
    uint8_t bytes[8];
    size_t at;
    for (at = 0; at < 8; at++)
        bytes[at] = (uint8_t)(number >> 8 * at);
    add(to, bytes, 8);
}

static void add_bytes(buffer *to, kvd_bytes bytes)
{
    add_number(to, bytes.len);
    add(to, bytes.data, bytes.len);
}

static uint64_t number_at(const uint8_t *bytes)
{
    uint64_t number = 0;
    size_t at;
    for (at = 0; at < 8; at++)
        number |= (uint64_t)bytes[at] << 8 * at;
    return number;
}

/* FNV-1a. */
static uint64_t checksum(const uint8_t *bytes, size_t len)
{
    uint64_t sum = UINT64_C(0xcbf29ce484222325);
    size_t at;
    for (at = 0; at < len; at++)
        sum = (sum ^ bytes[at]) * UINT64_C(0x100000001b3);
    return sum;
}

static void begin_record(buffer *record, kvd_mark mark)
{
    record->len = 0;
    add_number(record, 0);
    add_number(record, 0);
    add_number(record, mark.index);
    add_bytes(record, mark.data);
}

static void add_change(buffer *record, uint32_t kind, kvd_bytes a, kvd_bytes b)
{
    uint8_t byte = (uint8_t)kind;
    add(record, &byte, 1);
    add_bytes(record, a);
    add_bytes(record, b);
}

static void end_record(buffer *record)
{
    buffer head = {record->bytes, 8, record->room};
    add_number(&head, record->len - RECORD_HEAD);
    head.len = 0;
    add_number(&head, checksum(record->bytes + 8, record->len - 8));
}

/* Takes bytes with their length off a rest; returns whether they were there. */
static int take_bytes(kvd_bytes *rest, kvd_bytes *bytes)
{
    if (rest->len < 8)
        return 0;
    bytes->len = number_at(rest->data);
    bytes->data = rest->data + 8;
    if (bytes->len > rest->len - 8)
        return 0;
    rest->data += 8 + bytes->len;
    rest->len -= 8 + bytes->len;
    return 1;
}

/* Carries out a record whose checksum is right; returns whether it made sense. */
static int carry_out(state *s, kvd_bytes record)
{
    kvd_mark mark;
    if (record.len < 8)
        return 0;
    mark.index = number_at(record.data);
    record.data += 8;
    record.len -= 8;
    if (!take_bytes(&record, &mark.data))
        return 0;
    while (record.len) {
        kvd_bytes a, b;
        uint8_t kind = record.data[0];
        record.data++;
        record.len--;
        if (!take_bytes(&record, &a) || !take_bytes(&record, &b) || !change(s, kind, a, b))
            return 0;
    }
    set_mark(s, mark);
    return 1;
}

/* ---- Files. ---- */

static kvd_status system_failed(kvd_error *error, const char *what)
{
    kvd_status status = errno == ENOSPC || errno == EDQUOT ? KVD_NO_SPACE : KVD_IO;
    return kvd_fail(error, status, "%s: %s", what, strerror(errno));
}

static int write_all(int file, const uint8_t *bytes, size_t len)
{
    while (len) {
        ssize_t written = write(file, bytes, len);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            return 0;
        bytes += written;
        len -= (size_t)written;
    }
    return 1;
}

/* Reads a journal into a state, up to the first record that is not whole, and says where that is. */
static kvd_status read_journal(int file, state *s, uint64_t *whole, kvd_error *error)
{
    uint8_t header[sizeof(HEADER)];
    buffer record = {NULL, 0, 0};
    kvd_status status = KVD_OK;
    uint64_t at = sizeof(HEADER);
    struct stat stat;
    if (fstat(file, &stat))
        return system_failed(error, "journal");
    if (pread(file, header, sizeof(header), 0) != (ssize_t)sizeof(header) ||
        memcmp(header, HEADER, sizeof(header)) != 0)
        return kvd_fail(error, KVD_INCOMPATIBLE, "journal: not a file of this engine");
    for (;;) {
        uint8_t head[RECORD_HEAD];
        uint64_t len, left = (uint64_t)stat.st_size - at;
        size_t have = 0;
        if (left < RECORD_HEAD)
            break;
        if (pread(file, head, RECORD_HEAD, (off_t)at) != (ssize_t)RECORD_HEAD) {
            status = system_failed(error, "journal");
            break;
        }
        len = number_at(head + 8);
        if (len > left - RECORD_HEAD)
            break;
        record.len = 0;
        add(&record, head + 8, 8);
        while (have < len) {
            uint8_t part[65536];
            size_t want = len - have < sizeof(part) ? (size_t)(len - have) : sizeof(part);
            ssize_t got = pread(file, part, want, (off_t)(at + RECORD_HEAD + have));
            if (got <= 0) {
                status = system_failed(error, "journal");
                break;
            }
            add(&record, part, (size_t)got);
            have += (size_t)got;
        }
        if (status != KVD_OK || checksum(record.bytes, record.len) != number_at(head))
            break;
        if (!carry_out(s, (kvd_bytes){record.bytes + 8, record.len - 8})) {
            status = kvd_fail(error, KVD_CORRUPTION, "journal: a record at %" PRIu64
                              " makes no sense", at);
            break;
        }
        at += RECORD_HEAD + len;
    }
    free(record.bytes);
    *whole = at;
    return status;
}

/* ---- The engine. ---- */

typedef struct engine {
    const kvd_host *host;
    int dir, lock, file;
    uint64_t file_len;
    uint64_t slack; /* changes while others read it */
    pthread_rwlock_t guard; /* of what follows, for those that read it */
    state state;
} engine;

/* A root and its mark, held for as long as somebody reads them. */
typedef struct view {
    node *root;
} view;

static kvd_status journal_mark(void *at, const kvd_mark_out *out, kvd_error *error)
{
    engine *e = at;
    (void)error;
    pthread_rwlock_rdlock(&e->guard);
    out->give(out->context, mark_of(&e->state));
    pthread_rwlock_unlock(&e->guard);
    return KVD_OK;
}

static kvd_status give_value(const node *root, kvd_bytes key, const kvd_value_out *out)
{
    const node *n = found(root, key);
    if (n)
        out->give(out->context, value_of(n));
    return KVD_OK;
}

static kvd_status journal_get(void *at, kvd_bytes key, const kvd_value_out *out, kvd_error *error)
{
    engine *e = at;
    (void)error;
    pthread_rwlock_rdlock(&e->guard);
    give_value(e->state.root, key, out);
    pthread_rwlock_unlock(&e->guard);
    return KVD_OK;
}

static node *root_of(engine *e)
{
    node *root;
    pthread_rwlock_rdlock(&e->guard);
    root = hold(e->state.root);
    pthread_rwlock_unlock(&e->guard);
    return root;
}

static kvd_status journal_scan(void *at, const kvd_range *range, const kvd_entry_out *out,
                               kvd_error *error)
{
    /* A scan may be long: it reads what it holds, and no write waits for it. */
    node *root = root_of(at);
    kvd_status status = visit(root, range, out);
    (void)error;
    drop(root);
    return status;
}

/* Puts a state in the place of the one that is there. */
static void publish(engine *e, state next)
{
    state before;
    pthread_rwlock_wrlock(&e->guard);
    before = e->state;
    e->state = next;
    pthread_rwlock_unlock(&e->guard);
    end(&before);
}

static kvd_status journal_write(void *at, const kvd_op *ops, size_t ops_len, const kvd_mark *mark,
                                kvd_error *error)
{
    engine *e = at;
    buffer record = {NULL, 0, 0};
    state next = e->state;
    kvd_status status = KVD_OK;
    size_t op;
    next.data = NULL;
    /* Held twice, nothing of it is changed where readers see it. */
    hold(next.root);
    begin_record(&record, *mark);
    for (op = 0; op < ops_len && status == KVD_OK; op++) {
        if (change(&next, ops[op].kind, ops[op].a, ops[op].b))
            add_change(&record, ops[op].kind, ops[op].a, ops[op].b);
        else
            status = kvd_fail(error, KVD_UNSUPPORTED, "change of kind %u", ops[op].kind);
    }
    if (status == KVD_OK) {
        end_record(&record);
        if (write_all(e->file, record.bytes, record.len)) {
            e->file_len += record.len;
            set_mark(&next, *mark);
            publish(e, next);
            next = (state){0};
        } else {
            status = system_failed(error, "journal");
        }
    }
    free(record.bytes);
    end(&next);
    return status;
}

/* Where a journal that is written anew gets its entries. */
typedef struct writer {
    int file;
    int is_failed;
    uint64_t len;
    kvd_mark mark;
    buffer record;
} writer;

static void flush_record(writer *w)
{
    end_record(&w->record);
    if (!write_all(w->file, w->record.bytes, w->record.len))
        w->is_failed = 1;
    w->len += w->record.len;
    begin_record(&w->record, w->mark);
}

static int write_entry(void *context, kvd_bytes key, kvd_bytes value)
{
    writer *w = context;
    add_change(&w->record, KVD_PUT, key, value);
    if (w->record.len > 1 << 20)
        flush_record(w);
    return w->is_failed;
}

/* Writes a state as a journal of its own, durably, and puts it in the place of the one that is
 * there: until the rename the old one counts, after it the new one. */
static kvd_status write_anew(engine *e, const state *s, kvd_error *error)
{
    const kvd_range all = {{NULL, 0}, {NULL, 0}, 0, 0};
    writer w = {-1, 0, sizeof(HEADER), mark_of(s), {NULL, 0, 0}};
    const kvd_entry_out out = {&w, write_entry};
    kvd_status status = KVD_OK;
    w.file = openat(e->dir, "journal.new", O_CREAT | O_TRUNC | O_RDWR | O_APPEND | O_CLOEXEC, 0600);
    if (w.file < 0)
        return system_failed(error, "journal.new");
    begin_record(&w.record, w.mark);
    w.is_failed = !write_all(w.file, (const uint8_t *)HEADER, sizeof(HEADER));
    visit(s->root, &all, &out);
    flush_record(&w);
    free(w.record.bytes);
    if (w.is_failed || fsync(w.file))
        status = system_failed(error, "journal.new");
    else if (renameat(e->dir, "journal.new", e->dir, "journal") || fsync(e->dir))
        status = system_failed(error, "journal");
    if (status != KVD_OK) {
        close(w.file);
        return status;
    }
    if (e->file >= 0)
        close(e->file);
    e->file = w.file;
    e->file_len = w.len;
    return KVD_OK;
}

static kvd_status journal_compact(void *at, kvd_error *error)
{
    engine *e = at;
    return write_anew(e, &e->state, error);
}

static kvd_status journal_sync(void *at, const kvd_mark_out *out, kvd_error *error)
{
    engine *e = at;
    kvd_status status = KVD_OK;
    if (e->file_len > 2 * e->state.bytes + __atomic_load_n(&e->slack, __ATOMIC_RELAXED)) {
        kvd_log(e->host, KVD_LOG_DEBUG, "the journal of %" PRIu64 " bytes is written anew",
                e->file_len);
        status = journal_compact(e, error);
    } else if (fdatasync(e->file)) {
        status = system_failed(error, "journal");
    }
    /* Nobody writes meanwhile: what is there now is what was made durable. */
    return status == KVD_OK ? journal_mark(e, out, error) : status;
}

static kvd_status journal_replace(void *at, const kvd_feed *feed, const kvd_mark *mark,
                                  kvd_error *error)
{
    engine *e = at;
    state next = {0};
    kvd_bytes key, value;
    kvd_status status;
    int came;
    while ((came = feed->next(feed->context, &key, &value)) == KVD_FEED_ENTRY)
        put(&next, key, value);
    set_mark(&next, *mark);
    status = came == KVD_FEED_END ? write_anew(e, &next, error)
                                  : kvd_fail(error, KVD_OTHER, "the feed failed");
    if (status == KVD_OK)
        publish(e, next);
    else
        end(&next);
    return status;
}

static kvd_status journal_view(void *at, void **left, const kvd_mark_out *out, kvd_error *error)
{
    engine *e = at;
    view *v = memory(sizeof(view));
    (void)error;
    pthread_rwlock_rdlock(&e->guard);
    v->root = hold(e->state.root);
    out->give(out->context, mark_of(&e->state));
    pthread_rwlock_unlock(&e->guard);
    *left = v;
    return KVD_OK;
}

static kvd_status journal_view_get(void *at, kvd_bytes key, const kvd_value_out *out,
                                   kvd_error *error)
{
    const view *v = at;
    (void)error;
    return give_value(v->root, key, out);
}

static kvd_status journal_view_scan(void *at, const kvd_range *range, const kvd_entry_out *out,
                                    kvd_error *error)
{
    const view *v = at;
    (void)error;
    return visit(v->root, range, out);
}

static void journal_view_free(void *at)
{
    view *v = at;
    drop(v->root);
    free(v);
}

static const char *const PROPERTIES[] = {"kvd.disk.bytes", "kvd.keys", "journal.bytes.live"};

static void give_text(const kvd_value_out *out, const char *text)
{
    out->give(out->context, (kvd_bytes){(const uint8_t *)text, strlen(text)});
}

static kvd_status journal_properties(void *at, const kvd_value_out *out, kvd_error *error)
{
    size_t name;
    (void)at;
    (void)error;
    for (name = 0; name < sizeof(PROPERTIES) / sizeof(PROPERTIES[0]); name++)
        give_text(out, PROPERTIES[name]);
    return KVD_OK;
}

static kvd_status journal_property(void *at, const char *name, const kvd_value_out *out,
                                   kvd_error *error)
{
    engine *e = at;
    char text[32];
    uint64_t numbers[3];
    size_t number;
    struct stat stat;
    if (fstatat(e->dir, "journal", &stat, 0))
        return system_failed(error, "journal");
    pthread_rwlock_rdlock(&e->guard);
    numbers[0] = (uint64_t)stat.st_size;
    numbers[1] = e->state.keys;
    numbers[2] = e->state.bytes;
    pthread_rwlock_unlock(&e->guard);
    for (number = 0; number < 3; number++) {
        if (strcmp(name, PROPERTIES[number]) == 0) {
            snprintf(text, sizeof(text), "%" PRIu64, numbers[number]);
            give_text(out, text);
        }
    }
    return KVD_OK;
}

/* Reads the file again: it must say what is in memory. */
static kvd_status journal_verify(void *at, kvd_error *error)
{
    engine *e = at;
    state read = {0};
    uint64_t whole;
    kvd_status status = read_journal(e->file, &read, &whole, error);
    if (status == KVD_OK && (whole != e->file_len || read.keys != e->state.keys ||
                             read.bytes != e->state.bytes || read.index != e->state.index))
        status = kvd_fail(error, KVD_CORRUPTION,
                          "journal: the file is whole up to %" PRIu64 " of %" PRIu64 " bytes",
                          whole, e->file_len);
    end(&read);
    return status;
}

static kvd_status journal_reconfigure(void *at, const kvd_option_value *options, size_t options_len,
                                      kvd_error *error)
{
    engine *e = at;
    const kvd_option_value *slack = kvd_option_among(options, options_len, "slack");
    (void)error;
    __atomic_store_n(&e->slack, slack->number, __ATOMIC_RELAXED);
    return KVD_OK;
}

static void journal_free(void *at)
{
    engine *e = at;
    end(&e->state);
    pthread_rwlock_destroy(&e->guard);
    if (e->file >= 0)
        close(e->file);
    if (e->lock >= 0)
        close(e->lock);
    if (e->dir >= 0)
        close(e->dir);
    free(e);
}

static kvd_status open_files(engine *e, const char *dir, kvd_error *error)
{
    uint64_t whole;
    kvd_status status;
    e->dir = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (e->dir < 0)
        return system_failed(error, dir);
    e->lock = openat(e->dir, "lock", O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    if (e->lock < 0)
        return system_failed(error, "lock");
    if (flock(e->lock, LOCK_EX | LOCK_NB))
        return errno == EWOULDBLOCK
                   ? kvd_fail(error, KVD_LOCKED, "something else has the directory open")
                   : system_failed(error, "lock");
    e->file = openat(e->dir, "journal", O_RDWR | O_APPEND | O_CLOEXEC);
    if (e->file < 0)
        /* The first one comes into its place as every other does. */
        return errno == ENOENT ? write_anew(e, &e->state, error) : system_failed(error, "journal");
    status = read_journal(e->file, &e->state, &whole, error);
    if (status != KVD_OK)
        return status;
    /* What is behind was never promised; the next record must not stand behind it. */
    if (ftruncate(e->file, (off_t)whole) || fsync(e->file))
        return system_failed(error, "journal");
    e->file_len = whole;
    return KVD_OK;
}

static kvd_status journal_open(const kvd_open *cx, void **left, kvd_error *error)
{
    engine *e = memory(sizeof(engine));
    kvd_status status;
    *e = (engine){.host = cx->host, .dir = -1, .lock = -1, .file = -1};
    e->slack = kvd_option_named(cx, "slack")->number;
    pthread_rwlock_init(&e->guard, NULL);
    status = open_files(e, cx->dir, error);
    if (status == KVD_OK)
        *left = e;
    else
        journal_free(e);
    return status;
}

static const kvd_option OPTIONS[] = {
    {"slack", KVD_OPTION_SIZE, "16MiB",
     "the journal is written anew when it has as many bytes more than twice what it says"},
};

KVD_SYMBOL const kvd_backend kvd_backend_v1 = {
    .size = sizeof(kvd_backend),
    .caps = KVD_CAP_DURABLE | KVD_CAP_VIEW | KVD_CAP_FAST_READ | KVD_CAP_FAST_DELETE_RANGE |
            KVD_CAP_COMPACT | KVD_CAP_VERIFY | KVD_CAP_RECONFIGURE,
    .options = OPTIONS,
    .options_len = sizeof(OPTIONS) / sizeof(OPTIONS[0]),
    .open = journal_open,
    .free = journal_free,
    .mark = journal_mark,
    .get = journal_get,
    .scan = journal_scan,
    .write = journal_write,
    .sync = journal_sync,
    .replace = journal_replace,
    .view = journal_view,
    .view_get = journal_view_get,
    .view_scan = journal_view_scan,
    .view_free = journal_view_free,
    .properties = journal_properties,
    .property = journal_property,
    .compact = journal_compact,
    .verify = journal_verify,
    .reconfigure = journal_reconfigure,
};
