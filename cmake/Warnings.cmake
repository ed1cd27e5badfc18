# Warnings for our own code; errors where HETLORA_WERROR is on (CI).
option(HETLORA_WERROR "Treat compiler warnings as errors" OFF)
add_library(hetlora_warnings INTERFACE)
target_compile_options(hetlora_warnings INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual
    -Wcast-align -Wunused -Wduplicated-cond -Wlogical-op -Wformat=2
    $<$<BOOL:${HETLORA_WERROR}>:-Werror>)
