# LibTorch as an imported target of our own, `hetlora::torch`.
#
# The CMake package inside a CUDA build of torch stops with a fatal error on machines without CUDA's headers, although
# code that only uses ATen needs none of them. So we take headers and libraries from the folder ourselves:
#   1. -DTORCH_DIR=... or $TORCH_DIR : a LibTorch folder, or the `torch` package of a Python environment
#   2. $CMAKE_PREFIX_PATH / the active Python environment is looked at by scripts/setup.sh, which passes TORCH_DIR on
#   3. the project's own .venv
set(TORCH_DIR "$ENV{TORCH_DIR}" CACHE PATH "LibTorch folder (with include/ and lib/), or the torch package of a Python environment")

if(NOT TORCH_DIR)
    file(GLOB hetlora_torch_candidates "${PROJECT_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch")
    list(LENGTH hetlora_torch_candidates hetlora_torch_count)
    if(hetlora_torch_count GREATER 0)
        list(GET hetlora_torch_candidates 0 hetlora_torch_found)
        set(hetlora_torch_dir "${hetlora_torch_found}")
    endif()
else()
    set(hetlora_torch_dir "${TORCH_DIR}")
endif()

if(NOT hetlora_torch_dir OR NOT EXISTS "${hetlora_torch_dir}/include/ATen/ATen.h")
    message(FATAL_ERROR "LibTorch not found (looked at TORCH_DIR='${TORCH_DIR}' and at .venv): "
        "run `make setup`, or give the folder with include/ATen and lib/libtorch_cpu.so: TORCH_DIR=/path/to/libtorch make build")
endif()

# The C++11 ABI: all wheels since 2.7 and current LibTorch folders use it; an older one fails at link time in confusing ways.
execute_process(COMMAND nm -DC "${hetlora_torch_dir}/lib/libc10.so"
    COMMAND grep -c "c10::Error::Error(.*std::__cxx11::basic_string"
    OUTPUT_VARIABLE hetlora_torch_cxx11 OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if("${hetlora_torch_cxx11}" STREQUAL "0")
    message(FATAL_ERROR "The LibTorch in ${hetlora_torch_dir} was built with the pre-C++11 ABI; take torch 2.11 to 2.14.")
endif()

file(STRINGS "${hetlora_torch_dir}/include/torch/headeronly/version.h" hetlora_torch_version_lines
    REGEX "#define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
string(REGEX MATCHALL "[0-9]+" hetlora_torch_version_parts "${hetlora_torch_version_lines}")
list(JOIN hetlora_torch_version_parts "." HETLORA_TORCH_VERSION)
if(HETLORA_TORCH_VERSION VERSION_LESS 2.11 OR HETLORA_TORCH_VERSION VERSION_GREATER_EQUAL 2.15)
    message(WARNING "hetlora is tested with LibTorch 2.11 to 2.14; ${hetlora_torch_dir} has '${HETLORA_TORCH_VERSION}'")
endif()

add_library(hetlora_torch INTERFACE)
add_library(hetlora::torch ALIAS hetlora_torch)
target_include_directories(hetlora_torch SYSTEM INTERFACE "${hetlora_torch_dir}/include")
target_link_directories(hetlora_torch INTERFACE "${hetlora_torch_dir}/lib")
target_link_options(hetlora_torch INTERFACE "-Wl,-rpath,${hetlora_torch_dir}/lib")
set(hetlora_torch_has_cuda OFF)
if(EXISTS "${hetlora_torch_dir}/lib/libtorch_cuda.so")
    set(hetlora_torch_has_cuda ON)
    # Nothing refers to the CUDA library by symbol: it registers its kernels when it is loaded.
    target_link_libraries(hetlora_torch INTERFACE "-Wl,--no-as-needed" torch torch_cuda torch_cpu c10_cuda c10 "-Wl,--as-needed")
else()
    target_link_libraries(hetlora_torch INTERFACE torch torch_cpu c10)
endif()
message(STATUS "LibTorch ${HETLORA_TORCH_VERSION} in ${hetlora_torch_dir} (CUDA build: ${hetlora_torch_has_cuda})")
