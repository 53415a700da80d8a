// Follows one lane of a topic. Written from docs/layout.md alone, to show that the page suffices: nothing here
// comes from the crate. It has no slot, so it gates nobody, and copies each message before it believes it.
//
//   follow TOPICDIR LANE [COUNT]
//
// prints `SEQUENCE LENGTH HEX-OF-FIRST-16-BYTES SUM` for each message, oldest first (`-` for the hex of an empty one;
// the sum is that of the payload's bytes, mod 2^32), and ends after COUNT messages, or when the lane is closed and
// drained. If the writer overtakes it, it says so on stderr, and goes on at the oldest message that is still held.
// Exit status 1: the file is not a valid lane. 2: a frame contradicts the page. 3: wrong usage.

#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "all integers of the layout are little endian"
#endif

enum { HEADER = 4096, FLOOR = 512, CLOSED = 648, RECORDS = 768, RECORD_COUNT = 16, RECORD_SIZE = 32 };
enum { COMMITTED = 1, PADDING = 2, ENVELOPE = 4, CHECKSUM = 8 };

struct identity {
    char magic[8];
    uint32_t version, kind;
    uint64_t size, id, capacity, created, reserved[2];
};

static const unsigned char *lane; // the whole file
static uint64_t capacity;

static void fail(int status, const char *what, uint64_t number) {
    fflush(stdout);
    fprintf(stderr, "follow: %s (%" PRIu64 ")\n", what, number);
    exit(status);
}

static uint64_t load(uint64_t offset) { return __atomic_load_n((const uint64_t *)(lane + offset), __ATOMIC_ACQUIRE); }

static uint64_t in_file(uint64_t position) { return HEADER + position % capacity; }

// Whether what was loaded from `position` on, before this call, can be believed.
static bool still_held(uint64_t position) {
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return load(FLOOR) <= position;
}

static void open_lane(const char *topic, const char *number) {
    char path[4096];
    snprintf(path, sizeof path, "%s/lane.%s", topic, number);
    struct identity is;
    struct stat file;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &file) != 0) fail(1, "the lane cannot be opened", 0);
    uint64_t size = (uint64_t)file.st_size;
    if (pread(fd, &is, sizeof is, 0) != sizeof is) fail(1, "too short for an identity", size);
    if (memcmp(is.magic, "BUSLANE", 8) != 0) fail(1, "wrong magic", 0);
    if (is.version != 1) fail(1, "wrong version", is.version);
    if (is.kind != 4) fail(1, "wrong kind", is.kind);
    if (is.size != size) fail(1, "wrong size", size);
    if (is.id != strtoull(number, NULL, 10)) fail(1, "wrong id", is.id);
    if (is.capacity < 4096 || is.capacity > 1ull << 40 || (is.capacity & (is.capacity - 1)) != 0 ||
        is.capacity + HEADER != size)
        fail(1, "wrong capacity", is.capacity);
    capacity = is.capacity;
    lane = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    if (lane == MAP_FAILED) fail(1, "the lane cannot be mapped", 0);
    close(fd);
}

// Finds the oldest frame boundary that is still held.
static bool oldest(uint64_t *position, uint64_t *sequence) {
    *position = UINT64_MAX;
    for (uint64_t record = RECORDS; record < RECORDS + RECORD_COUNT * RECORD_SIZE; record += RECORD_SIZE) {
        uint64_t at = load(record), number = load(record + 8);
        if (at >= *position || !still_held(at)) continue; // an unused one is all ones
        if (at % 16 != 0) fail(2, "a record is not at a multiple of 16", at);
        *position = at;
        *sequence = number;
    }
    return *position != UINT64_MAX;
}

// What contradicts the page in a frame's word, or NULL.
static const char *contradiction(uint64_t word, uint64_t position, uint64_t sequence, bool after_padding) {
    uint64_t length = (uint32_t)word >> 4, left = capacity - position % capacity;
    uint64_t takes = (8 + length + 15) / 16 * 16, longest = capacity / 8 * 3 / 16 * 16 - 64;
    if (!(word & COMMITTED)) return "a frame that is not committed";
    if (word & CHECKSUM) return "a frame with a checksum";
    if (word & ENVELOPE) longest += 56;
    if (word >> 32 != (uint32_t)sequence) return "a frame with the wrong sequence number";
    if (takes > left) return "a frame crosses the end of the ring";
    if (!(word & PADDING)) return length > longest ? "a frame is too long" : NULL;
    if (after_padding) return "two padding frames follow each other";
    return takes != left ? "a padding frame does not fill the ring" : NULL;
}

// Bytes before the payload of a message, a copy of which is given.
static uint64_t before_payload(uint64_t word, const unsigned char *copy, uint64_t position) {
    if (!(word & ENVELOPE)) return 0;
    uint64_t length = (uint32_t)word >> 4;
    uint32_t extension = 0;
    if (length >= 56) memcpy(&extension, copy + 52, sizeof extension);
    if (length < 56 || extension % 8 != 0 || extension > length - 56)
        fail(2, "an envelope is longer than its message", position);
    return 56 + extension;
}

static void print(uint64_t sequence, const unsigned char *payload, uint64_t length) {
    uint32_t sum = 0;
    for (uint64_t i = 0; i < length; i++) sum += payload[i];
    printf("%" PRIu64 " %" PRIu64 " %s", sequence, length, length == 0 ? "-" : "");
    for (uint64_t i = 0; i < length && i < 16; i++) printf("%02x", payload[i]);
    printf(" %" PRIu32 "\n", sum);
    if (fflush(stdout) != 0) exit(0); // nobody reads on
}

int main(int count, char **arguments) {
    if (count < 3 || count > 4) fail(3, "usage: follow TOPICDIR LANE [COUNT]", 0);
    uint64_t wanted = count == 4 ? strtoull(arguments[3], NULL, 10) : UINT64_MAX, printed = 0;
    open_lane(arguments[1], arguments[2]);
    unsigned char *copy = malloc(capacity < 1 << 28 ? capacity : 1 << 28);
    if (copy == NULL) fail(1, "no memory for a message", capacity);

    uint64_t position, sequence;
    while (!oldest(&position, &sequence)) usleep(1000);
    bool after_padding = false;
    while (printed < wanted) {
        uint64_t closed = load(CLOSED), word = load(in_file(position)), length = (uint32_t)word >> 4;
        const char *wrong = word == 0 ? NULL : contradiction(word, position, sequence, after_padding);
        bool message = word != 0 && wrong == NULL && !(word & PADDING);
        if (message) memcpy(copy, lane + in_file(position) + 8, length);
        if (!still_held(position)) {
            fprintf(stderr, "follow: overtaken at position %" PRIu64 "\n", position);
            while (!oldest(&position, &sequence)) usleep(1000);
            after_padding = false;
            continue;
        }
        if (wrong != NULL) fail(2, wrong, position);
        if (word == 0) {
            if (closed == 1) break;
            usleep(1000);
            continue;
        }
        if (message) {
            uint64_t before = before_payload(word, copy, position);
            print(sequence++, copy + before, length - before);
            printed++;
        }
        after_padding = !message;
        position += (8 + length + 15) / 16 * 16;
    }
    return 0;
}
