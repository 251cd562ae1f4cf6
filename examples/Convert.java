// SPDX-License-Identifier: LGPL-2.1-or-later

import com.sun.star.beans.PropertyValue;
import com.sun.star.bridge.XBridge;
import com.sun.star.bridge.XBridgeFactory;
import com.sun.star.comp.helper.Bootstrap;
import com.sun.star.connection.XConnection;
import com.sun.star.connection.XConnector;
import com.sun.star.frame.XComponentLoader;
import com.sun.star.frame.XStorable;
import com.sun.star.io.XInputStream;
import com.sun.star.io.XOutputStream;
import com.sun.star.io.XSequenceOutputStream;
import com.sun.star.lang.DisposedException;
import com.sun.star.lang.XComponent;
import com.sun.star.lang.XMultiComponentFactory;
import com.sun.star.lang.XServiceInfo;
import com.sun.star.uno.UnoRuntime;
import com.sun.star.uno.XComponentContext;
import com.sun.star.util.XCloseable;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;

/**
 * Converts documents to PDF through port 2002: a client to copy from. Needs Debian's liblibreoffice-java, and
 * libunoloader-java.
 *
 * <p>{@code java -cp /usr/share/java/libreoffice.jar Convert.java report.docx report.pdf}
 *
 * <p>The document and the PDF travel over the connection, each in one call, so the office needs no access to your files.
 */
public final class Convert {
    private static final String ADDRESS = "socket,host=localhost,port=2002";

    private Convert() {}

    /** A session: a connection of its own, and so an office of its own. To close it is to give the office back. */
    private static final class Session implements AutoCloseable {
        final XComponentContext context;
        private final XBridge bridge;

        Session() throws Exception {
            XComponentContext local = Bootstrap.createInitialComponentContext(null);
            XMultiComponentFactory services = local.getServiceManager();
            Object connector = services.createInstanceWithContext("com.sun.star.connection.Connector", local);
            XConnection connection = UnoRuntime.queryInterface(XConnector.class, connector).connect(ADDRESS);
            Object factory = services.createInstanceWithContext("com.sun.star.bridge.BridgeFactory", local);
            // The empty name makes a new bridge. UnoUrlResolver would look for one that is there.
            bridge = UnoRuntime.queryInterface(XBridgeFactory.class, factory).createBridge("", "urp", connection, null);
            Object remote = bridge.getInstance("StarOffice.ComponentContext");
            context = UnoRuntime.queryInterface(XComponentContext.class, remote);
        }

        <T> T create(Class<T> type, String service, Object... arguments) throws Exception {
            return UnoRuntime.queryInterface(
                    type,
                    context.getServiceManager().createInstanceWithArgumentsAndContext(service, arguments, context));
        }

        @Override
        public void close() {
            UnoRuntime.queryInterface(XComponent.class, bridge).dispose();
        }
    }

    private static PropertyValue property(String name, Object value) {
        PropertyValue property = new PropertyValue();
        property.Name = name;
        property.Value = value;
        return property;
    }

    private static byte[] convert(Session session, byte[] data) throws Exception {
        // Both streams are the office's own: all bytes go in one call, where a stream of ours would get thousands.
        Object[] bytes = {data};
        XInputStream in = session.create(XInputStream.class, "com.sun.star.io.SequenceInputStream", bytes);
        PropertyValue[] load = {property("Hidden", true), property("InputStream", in)};
        XComponent document = session.create(XComponentLoader.class, "com.sun.star.frame.Desktop")
                .loadComponentFromURL("private:stream", "_blank", 0, load);
        if (document == null) {
            throw new IllegalArgumentException("LibreOffice cannot load this document");
        }
        XSequenceOutputStream out = session.create(XSequenceOutputStream.class, "com.sun.star.io.SequenceOutputStream");
        PropertyValue[] store = {
            property("FilterName", filter(document)),
            property("OutputStream", UnoRuntime.queryInterface(XOutputStream.class, out))
        };
        UnoRuntime.queryInterface(XStorable.class, document).storeToURL("private:stream", store);
        byte[] pdf = out.getWrittenBytes();
        UnoRuntime.queryInterface(XCloseable.class, document).close(true);
        return pdf;
    }

    private static String filter(XComponent document) {
        XServiceInfo kind = UnoRuntime.queryInterface(XServiceInfo.class, document);
        if (kind.supportsService("com.sun.star.sheet.SpreadsheetDocument")) {
            return "calc_pdf_Export";
        }
        if (kind.supportsService("com.sun.star.presentation.PresentationDocument")) {
            return "impress_pdf_Export";
        }
        return "writer_pdf_Export";
    }

    /**
     * Converts one document. If its office is lost meanwhile, another one does it.
     *
     * @param arguments the document, and the file for the PDF
     * @throws Exception if the document can't be converted
     */
    public static void main(String[] arguments) throws Exception {
        Path target = Paths.get(arguments[1]);
        byte[] data = Files.readAllBytes(Paths.get(arguments[0]));
        try (Session session = new Session()) {
            Files.write(target, convert(session, data));
        } catch (DisposedException lost) {
            try (Session session = new Session()) {
                Files.write(target, convert(session, data));
            }
        }
        System.exit(0); // UNO's threads don't end by themselves
    }
}
