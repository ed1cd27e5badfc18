# `cmake --install`: the program, the Python bridge (src/plugin) and what a plugin is built against: the headers of
# include/hetlora/plugin and a package for find_package(hetlora).
include(CMakePackageConfigHelpers)
set_target_properties(hetlora PROPERTIES INSTALL_RPATH_USE_LINK_PATH ON)
if(TARGET hetlora_python)
    set_target_properties(hetlora_python PROPERTIES INSTALL_RPATH_USE_LINK_PATH ON)
endif()
install(TARGETS hetlora RUNTIME DESTINATION bin)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/hetlora/plugin DESTINATION include/hetlora)
configure_file(${CMAKE_CURRENT_LIST_DIR}/hetlora-config.cmake.in ${PROJECT_BINARY_DIR}/hetlora-config.cmake @ONLY)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/hetlora-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/hetlora-config.cmake ${PROJECT_BINARY_DIR}/hetlora-config-version.cmake
    DESTINATION lib/cmake/hetlora)
