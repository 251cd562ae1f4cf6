// SPDX-License-Identifier: LGPL-2.1-or-later

import com.sun.star.beans.PropertyValue;
import com.sun.star.bridge.XBridge;
import com.sun.star.bridge.XBridgeFactory;
import com.sun.star.comp.helper.Bootstrap;
import com.sun.star.connection.XConnection;
import com.sun.star.connection.XConnector;
import com.sun.star.frame.XComponentLoader;
import com.sun.star.lang.XMultiComponentFactory;
import com.sun.star.uno.UnoRuntime;
import com.sun.star.uno.XComponentContext;
import com.sun.star.util.XCloseable;
import java.util.ArrayList;
import java.util.List;

/**
 * A program that runs for long and does one job after the other, as jobs.py does.
 *
 * <p>{@code Jobs HOST PORT COUNT [THREADS]}. Each job makes a connection with a bridge of its own, which is kept.
 */
public final class Jobs {
    private static final List<Object> KEPT = new ArrayList<>();

    private Jobs() {}

    private static XComponentContext connect(String host, String port) throws Exception {
        XComponentContext local = Bootstrap.createInitialComponentContext(null);
        XMultiComponentFactory services = local.getServiceManager();
        Object connector = services.createInstanceWithContext("com.sun.star.connection.Connector", local);
        XConnection connection = UnoRuntime.queryInterface(XConnector.class, connector)
                .connect("socket,host=" + host + ",port=" + port);
        Object factory = services.createInstanceWithContext("com.sun.star.bridge.BridgeFactory", local);
        XBridge bridge =
                UnoRuntime.queryInterface(XBridgeFactory.class, factory).createBridge("", "urp", connection, null);
        return UnoRuntime.queryInterface(XComponentContext.class, bridge.getInstance("StarOffice.ComponentContext"));
    }

    private static void work(XComponentContext context) throws Exception {
        Object desktop = context.getServiceManager().createInstanceWithContext("com.sun.star.frame.Desktop", context);
        PropertyValue hidden = new PropertyValue();
        hidden.Name = "Hidden";
        hidden.Value = true;
        Object document = UnoRuntime.queryInterface(XComponentLoader.class, desktop)
                .loadComponentFromURL("private:factory/swriter", "_blank", 0, new PropertyValue[] {hidden});
        UnoRuntime.queryInterface(XCloseable.class, document).close(true);
    }

    private static void jobs(String host, String port, int count) throws Exception {
        for (int number = 0; number < count; number++) {
            long begun = System.nanoTime();
            XComponentContext context = connect(host, port);
            double waited = (System.nanoTime() - begun) / 1e9;
            work(context);
            synchronized (KEPT) {
                KEPT.add(context);
                System.out.println("{\"step\": \"job\", \"number\": " + number + ", \"waited\": " + waited + "}");
            }
        }
    }

    /**
     * Does the jobs.
     *
     * @param arguments host, port, the number of jobs, and the number of threads that do so many each
     * @throws InterruptedException never
     */
    public static void main(String[] arguments) throws InterruptedException {
        int count = Integer.parseInt(arguments[2]);
        int size = arguments.length > 3 ? Integer.parseInt(arguments[3]) : 1;
        List<Exception> failed = new ArrayList<>();
        List<Thread> threads = new ArrayList<>();
        for (int number = 0; number < size; number++) {
            Thread thread = new Thread(() -> {
                try {
                    jobs(arguments[0], arguments[1], count);
                } catch (Exception error) {
                    synchronized (KEPT) {
                        failed.add(error);
                    }
                    System.err.println(error);
                }
            });
            thread.start();
            threads.add(thread);
        }
        for (Thread thread : threads) {
            thread.join();
        }
        System.exit(failed.isEmpty() ? 0 : 1);
    }
}
