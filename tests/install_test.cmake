# Installs the build into an empty folder, builds tests/consumer against it, and runs the program.
#   cmake -DBUILD=… -DSOURCE=… -DWORK=… -P install_test.cmake
function(must)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT status EQUAL 0)
    string(JOIN " " command ${ARGV})
    message(FATAL_ERROR "failed: ${command}\n${output}")
  endif()
endfunction()
file(REMOVE_RECURSE ${WORK})
must(${CMAKE_COMMAND} --install ${BUILD} --prefix ${WORK}/prefix)
must(${CMAKE_COMMAND} -S ${SOURCE}/tests/consumer -B ${WORK}/build -DCMAKE_PREFIX_PATH=${WORK}/prefix
     -DPROGRAM=${SOURCE}/tests/readme_program.cpp)
must(${CMAKE_COMMAND} --build ${WORK}/build)
must(${WORK}/build/consumer)
file(REMOVE_RECURSE ${WORK})
