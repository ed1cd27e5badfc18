# One fmt for all files. torch's include folder carries fmt headers of its own, newer than the system's library, and would
# shadow the system's. So the system's headers stand in a folder of their own that is searched first, and the compiled
# library is used: header-only fmt costs every file 2 to 7 seconds.
get_target_property(hetlora_fmt_includes fmt::fmt INTERFACE_INCLUDE_DIRECTORIES)
find_path(hetlora_fmt_include fmt/format.h HINTS ${hetlora_fmt_includes} NO_CACHE REQUIRED)
file(MAKE_DIRECTORY ${PROJECT_BINARY_DIR}/fmt-first)
file(CREATE_LINK ${hetlora_fmt_include}/fmt ${PROJECT_BINARY_DIR}/fmt-first/fmt SYMBOLIC)
include_directories(BEFORE SYSTEM ${PROJECT_BINARY_DIR}/fmt-first)
link_libraries(fmt::fmt)
