// A tool as NVTX loads one (NVTX_INJECTION64_PATH): writes each range to the file NVTX_TOOL_LOG, a line an event.
// Names and numbers are those of nvToolsExt.h, version 3; each line ends a write, because threads share the file.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

struct Attributes {
    uint16_t version, size;
    uint32_t category;
    int32_t color_type;
    uint32_t color;
    int32_t payload_type, reserved;
    uint64_t payload;
    int32_t message_type;  // 1: text; 3: a registered string, whose handle is its text here
    const char* message;
};

FILE* log_file;

void write_event(const char* kind, const char* name) {
    std::fprintf(log_file, "%s\t%ld\t%s\n", kind, syscall(SYS_gettid), name);
    std::fflush(log_file);
}

uint64_t range_start(void*, const Attributes* range) {
    write_event("start", range->message);
    return 1;
}

void range_end(void*, uint64_t) { write_event("end", ""); }

int range_push(void*, const Attributes* range) {
    write_event("push", range->message);
    return 0;
}

int range_pop(void*) {
    write_event("pop", "");
    return 0;
}

void* register_string(void*, const char* text) { return strdup(text); }

void* create_domain(const char* name) { return strdup(name); }

using Function = void (*)();

struct Callbacks {
    size_t size;
    int (*module_table)(int module, Function*** table, unsigned* size);
};

}  // namespace

extern "C" int InitializeInjectionNvtx2(const void* (*export_table)(uint32_t)) {
    log_file = std::fopen(std::getenv("NVTX_TOOL_LOG"), "a");
    auto* callbacks = static_cast<const Callbacks*>(export_table(1));
    Function** table;
    unsigned size;
    const int domains = 5;
    if (!log_file || !callbacks || !callbacks->module_table(domains, &table, &size)) return 0;
    *table[2] = reinterpret_cast<Function>(range_start);
    *table[3] = reinterpret_cast<Function>(range_end);
    *table[4] = reinterpret_cast<Function>(range_push);
    *table[5] = reinterpret_cast<Function>(range_pop);
    *table[10] = reinterpret_cast<Function>(register_string);
    *table[12] = reinterpret_cast<Function>(create_domain);
    return 1;
}
