# hetlora_test(NAME name SOURCES ... LIBS ... [MPI_RANKS 1 2 4] [TIMEOUT s] [LABELS ...])
# One GoogleTest program; with MPI_RANKS the same binary runs under mpirun at each size, with the listener of
# hetlora_mpi_test_main (failures of every MPI rank are shown, the exit code is the maximum over MPI ranks).
find_package(GTest REQUIRED)

set(HETLORA_TEST_ENVIRONMENT
    "OMPI_ALLOW_RUN_AS_ROOT=1;OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1;OMPI_MCA_rmaps_base_oversubscribe=1;OMPI_MCA_btl_vader_single_copy_mechanism=none;OMPI_MCA_mpi_yield_when_idle=1;OMPI_MCA_hwloc_base_binding_policy=none;OMP_NUM_THREADS=1;HETLORA_SOURCE_DIR=${PROJECT_SOURCE_DIR};HETLORA_BUILD_DIR=${PROJECT_BINARY_DIR};HETLORA_PROGRAM=${PROJECT_BINARY_DIR}/hetlora")

function(hetlora_test)
    cmake_parse_arguments(T "" "NAME;TIMEOUT" "SOURCES;LIBS;MPI_RANKS;LABELS" ${ARGN})
    if(NOT T_TIMEOUT)
        set(T_TIMEOUT 120)
    endif()
    add_executable(${T_NAME} ${T_SOURCES})
    target_link_libraries(${T_NAME} PRIVATE ${T_LIBS} hetlora_warnings)
    set_target_properties(${T_NAME} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/tests")
    # GCC 12 sees uninitialised members behind std::variant and member pointers where there are none.
    target_compile_options(${T_NAME} PRIVATE $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
    if(T_MPI_RANKS)
        target_link_libraries(${T_NAME} PRIVATE hetlora_mpi_test_main GTest::gtest)
        foreach(ranks IN LISTS T_MPI_RANKS)
            add_test(NAME ${T_NAME}.mpi${ranks} COMMAND ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG} ${ranks} $<TARGET_FILE:${T_NAME}>)
            set_tests_properties(${T_NAME}.mpi${ranks} PROPERTIES TIMEOUT ${T_TIMEOUT} PROCESSORS 2 LABELS "mpi;${T_LABELS}"
                ENVIRONMENT "${HETLORA_TEST_ENVIRONMENT}")
        endforeach()
    else()
        target_link_libraries(${T_NAME} PRIVATE GTest::gtest_main)
        add_test(NAME ${T_NAME} COMMAND $<TARGET_FILE:${T_NAME}>)
        set_tests_properties(${T_NAME} PROPERTIES TIMEOUT ${T_TIMEOUT} LABELS "${T_LABELS}" ENVIRONMENT "${HETLORA_TEST_ENVIRONMENT}")
    endif()
endfunction()
