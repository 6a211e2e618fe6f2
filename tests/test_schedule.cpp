#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "core/error.h"
#include "optim/schedule.h"

using namespace ulp;
using optim::Moment;
using optim::Schedule;
using optim::ScheduleSpec;

namespace {

Schedule schedule(const char* text, double base, int64_t total, int64_t epoch = 0) {
  return {ScheduleSpec::parse(text), base, total, epoch};
}

}  // namespace

TEST_SUITE("schedule") {
  TEST_CASE("values at points that are worked out by hand") {
    struct Point {
      int64_t step;
      double factor;
    };
    struct Case {
      const char* text;
      std::vector<Point> points;
    };
    const double half = 0.5;
    // Of 100 steps.
    const Case cases[] = {
        {"constant", {{0, 1}, {99, 1}}},
        {"linear", {{0, 1}, {25, 0.75}, {99, 0.01}}},
        {"linear:0.2", {{0, 1}, {50, 0.6}, {100, 0.2}}},
        {"cosine", {{0, 1}, {25, half * (1 + std::sqrt(half))}, {50, half}, {100, 0}}},
        {"cosine:0.01", {{0, 1}, {50, 0.505}, {100, 0.01}}},
        {"step", {{0, 1}, {49, 1}, {50, 0.1}, {74, 0.1}, {75, 0.01}, {99, 0.01}}},
        {"step:0.5@30,0.5,4e", {{29, 1}, {30, 0.5}, {50, 0.25}, {79, 0.25}, {80, 0.125}}},
        {"step:0.25", {{50, 0.25}, {75, 0.0625}}},
        {"onecycle",
         {{0, 0.1}, {9, 0.28}, {45, 1}, {54, 0.82}, {90, 0.1}, {95, 0.0505}, {100, 0.001}}},
        {"onecycle:0.5,4", {{0, 0.25}, {25, 0.625}, {50, 1}, {75, 0.625}, {100, 0.25}}},
        {"swalp:0.2@0.5", {{0, 1}, {25, 1}, {35, 0.6}, {45, 0.2}, {50, 0.2}, {99, 0.2}}},
        {"warmup:10+constant", {{0, 0.1}, {4, 0.5}, {9, 1}, {10, 1}, {99, 1}}},
        {"warmup:0.2+linear", {{0, 0.05}, {19, 1}, {20, 1}, {60, 0.5}, {99, 0.0125}}},
        {"warmup:1e+cosine:0.1", {{0, 0.05}, {19, 1}, {20, 1}, {60, 0.55}, {100, 0.1}}},
        {"warmup:20+step:0.1@0.5", {{19, 1}, {49, 1}, {50, 0.1}}},
        {"warmup:20+swalp:0.2@60", {{20, 1}, {40, 1}, {48, 0.6}, {56, 0.2}, {99, 0.2}}},
        {"warmup:0+constant", {{0, 1}}},
    };
    for (const Case& c : cases) {
      const Schedule s = schedule(c.text, 0.3, 100, 20);
      for (const Point& p : c.points) {
        CAPTURE(std::string(c.text));
        CAPTURE(p.step);
        CHECK(std::abs(s.lr(p.step) - 0.3 * p.factor) <= 1e-15);
      }
      const std::vector<float> rates = s.rates(3, 5);
      REQUIRE(rates.size() == 5);
      for (int64_t i = 0; i < 5; ++i)
        CHECK(rates[static_cast<size_t>(i)] == static_cast<float>(s.lr(3 + i)));
    }
  }

  TEST_CASE("one cycle moves the momentum against the rate") {
    struct Point {
      int64_t step;
      double momentum;
    };
    struct Case {
      const char* text;
      std::vector<Point> points;
    };
    for (const Case& c :
         {Case{"onecycle:0.45,10,100@0.95,0.85",
               {{0, 0.95}, {9, 0.93}, {45, 0.85}, {54, 0.87}, {90, 0.95}, {95, 0.95}, {99, 0.95}}},
          {"onecycle@0.9,0", {{0, 0.9}, {45, 0}, {90, 0.9}, {100, 0.9}}},
          {"onecycle:0.5@0.8,0.8", {{0, 0.8}, {50, 0.8}, {99, 0.8}}},
          {"onecycle:0.5,4@0.9,0.5", {{0, 0.9}, {25, 0.7}, {50, 0.5}, {75, 0.7}, {100, 0.9}}}}) {
      CAPTURE(std::string(c.text));
      const Schedule s = schedule(c.text, 0.3, 100);
      for (const Point& p : c.points) {
        CAPTURE(p.step);
        CHECK(std::abs(s.momentum(p.step) - p.momentum) <= 1e-15);
      }
      const std::vector<float> momenta = s.momenta(3, 5);
      REQUIRE(momenta.size() == 5);
      for (int64_t i = 0; i < 5; ++i)
        CHECK(momenta[static_cast<size_t>(i)] == static_cast<float>(s.momentum(3 + i)));
    }
    for (const char* text : {"onecycle", "cosine", "constant"})
      CHECK(schedule(text, 0.3, 100).momenta(0, 5).empty());
  }

  TEST_CASE("no step has a rate below 0 or above the base") {
    for (const char* text : {"linear", "cosine", "onecycle", "onecycle:0.333", "swalp",
                             "warmup:7+cosine", "warmup:3+linear:1", "step:0", "swalp:0@0.0"})
      for (const int64_t total : {11, 100, 101, 4999}) {
        const Schedule s = schedule(text, 0.1, total);
        for (int64_t step = 0; step <= total; ++step) {
          CHECK(s.lr(step) >= 0);
          CHECK(s.lr(step) <= 0.1 * (1 + 1e-15));
        }
      }
  }

  TEST_CASE("a text is written back in full and parses to the same") {
    struct Case {
      const char *given, *text;
    };
    for (const Case& c : {Case{"constant", "constant"},
                          {"cosine", "cosine:0"},
                          {"cosine:0.010", "cosine:0.01"},
                          {"linear:1e-3", "linear:0.001"},
                          {"step", "step:0.1@0.5,0.75"},
                          {"step:0.2@30,1.0,10e", "step:0.2@30,1.0,10e"},
                          {"step:0.1@0.00001", "step:0.1@0.00001"},
                          {"onecycle", "onecycle:0.45,10,100"},
                          {"onecycle:0.3,25,10000", "onecycle:0.3,25,10000"},
                          {"onecycle:0.3@0.95,0.85", "onecycle:0.3,10,100@0.95,0.85"},
                          {"onecycle@0.9,0", "onecycle:0.45,10,100@0.9,0"},
                          {"onecycle:@0.9,0.8", "onecycle:0.45,10,100@0.9,0.8"},
                          {"swalp", "swalp:0.2@0.67"},
                          {"warmup:500+cosine", "warmup:500+cosine:0"},
                          {"warmup:0.05+step:0.5@3e", "warmup:0.05+step:0.5@3e"},
                          {"warmup:0+linear", "linear:0"}}) {
      CAPTURE(std::string(c.given));
      const ScheduleSpec spec = ScheduleSpec::parse(c.given);
      CHECK(spec.text() == c.text);
      CHECK(ScheduleSpec::parse(spec.text()) == spec);
      CHECK(!schedule(c.given, 0.1, 1000, 100).describe().empty());
    }
  }

  TEST_CASE("bad texts are told what is wrong") {
    struct Case {
      const char *text, *error;
    };
    for (const Case& c : {Case{"", "unknown schedule ''"},
                          {"cosin", "unknown schedule 'cosin': wanted constant, linear[:FLOOR]"},
                          {"constant:1", "constant takes no numbers"},
                          {"cosine:", "cosine: the floor must be a number from 0 to 1, got ''"},
                          {"cosine:1.5", "from 0 to 1"},
                          {"cosine:0.1x", "got '0.1x'"},
                          {"linear:nan", "linear: the floor"},
                          {"step:2", "step: the factor must be a number from 0 to 1"},
                          {"step:0.1@", "step: a moment must be a share of the run such as 0.5"},
                          {"step:0.1@0.5,,3", "got ''"},
                          {"step:0.1@1.5", "got '1.5'"},
                          {"step:0.1@-3", "got '-3'"},
                          {"step:0.1@3.5e", "got '3.5e'"},
                          {"onecycle:0.6", "onecycle: the rise's share"},
                          {"onecycle:0.3,0.5", "onecycle: the first divisor"},
                          {"onecycle:0.3,10,0", "onecycle: the last divisor"},
                          {"onecycle:0.3,10,10,1", "at most three"},
                          {"onecycle:", "onecycle: the rise's share"},
                          {"onecycle@", "the momenta are two, as in @0.95,0.85, got '@'"},
                          {"onecycle@0.9", "the momenta are two"},
                          {"onecycle@0.9,0.8,0.7", "the momenta are two"},
                          {"onecycle@1,0.8", "onecycle: the higher momentum"},
                          {"onecycle@0.8,0.9", "lower momentum must be a number from 0 to 0.8"},
                          {"onecycle@0.9,x", "onecycle: the lower momentum"},
                          {"cosine@0.9,0.8", "cosine: the floor must be a number"},
                          {"swalp:0.2@3,5", "swalp: there is one moment"},
                          {"warmup:500", "goes before a schedule, as in warmup:500+cosine"},
                          {"warmup:+cosine", "warmup must be"},
                          {"warmup:5+warmup:5+cosine", "unknown schedule 'warmup:5+cosine'"},
                          {"warmup:5+onecycle", "takes no warm-up"},
                          {"warmup:99999999999999999999+cosine", "warmup must be"}}) {
      CAPTURE(std::string(c.text));
      CHECK_THROWS_WITH_AS(ScheduleSpec::parse(c.text), doctest::Contains(c.error), Error);
    }
    CHECK_THROWS_WITH_AS(schedule("warmup:100+cosine", 1, 100),
                         doctest::Contains("warms up for 100 steps, and the run has 100"), Error);
    CHECK_THROWS_WITH_AS(schedule("step:0.1@50,101", 1, 100),
                         doctest::Contains("has a moment after 101 steps, and the run has 100"),
                         Error);
    CHECK_NOTHROW(schedule("swalp:0.2@1.0", 1, 100));
    CHECK_THROWS_WITH_AS(schedule("step:0.1@60,0.5", 1, 100),
                         doctest::Contains("do not ascend: step 50 after step 60"), Error);
    CHECK_THROWS_WITH_AS(schedule("step:0.1@3e", 1, 100), doctest::Contains("in epochs"), Error);
  }

  TEST_CASE("moments") {
    CHECK(Moment::parse("0.25", "x").steps(10, 0) == 3);  // to the nearest
    CHECK(Moment::parse("7", "x").steps(10, 0) == 7);
    CHECK(Moment::parse("3e", "x").steps(10, 4) == 12);
    CHECK(Moment::parse("1.0", "x").steps(10, 0) == 10);
    CHECK(Moment::parse("1", "x").steps(10, 0) == 1);
  }
}
